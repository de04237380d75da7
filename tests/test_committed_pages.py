"""The pages under benchmarks/ are what the code makes of the tables beside them: old results stay readable."""

import shutil
from pathlib import Path

import pytest

import sb3_hybrid_grpo
from sb3_hybrid_grpo.__main__ import main, run_command

BENCHMARKS = Path(sb3_hybrid_grpo.__file__).parents[1] / "benchmarks"


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a committed folder without its page and pictures."""
    source = BENCHMARKS / request.param
    if not source.is_dir():
        pytest.skip("runs without the benchmarks")
    shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("README.md", "speed.md", "*.png"))
    return tmp_path / "copy"


def check(folder: Path, name: str, page: str, picture: str) -> None:
    assert (folder / page).read_text(encoding="utf-8") == (BENCHMARKS / name / page).read_text(encoding="utf-8")
    assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("folder", ["inventory_search"], indirect=True)
def test_a_comparison(folder: Path) -> None:
    assert main(["compare", "report", str(folder)]) == 0
    check(folder, "inventory_search", "README.md", "hybrid_grpo-Inventory-v0.png")


@pytest.mark.parametrize("folder", ["gradient_variance"], indirect=True)
def test_gradients(folder: Path) -> None:
    assert main(["compare", "gradient-variance", "--report-only", "--output", str(folder)]) == 0
    check(folder, "gradient_variance", "README.md", "gradient_variance.png")


@pytest.mark.parametrize("folder", ["speed"], indirect=True)
def test_speed(folder: Path) -> None:
    assert run_command("sb3_hybrid_grpo.benchmark.speed", "speed", ["--report-only", "--output", str(folder)]) == 0
    check(folder, "speed", "speed.md", "speed.png")


@pytest.mark.parametrize("folder", ["zoo"], indirect=True)
def test_zoo(folder: Path) -> None:
    pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
    arguments = ["--report-only", "--output", str(folder), "--logs", str(folder)]
    assert run_command("sb3_hybrid_grpo.benchmark.zoo", "zoo", arguments) == 0
    check(folder, "zoo", "README.md", "curves.png")
