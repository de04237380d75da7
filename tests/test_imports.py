"""Data flows one way, and imports follow it: who may import whom."""

import ast
from pathlib import Path

import pytest

import sb3_hybrid_grpo

ROOT = Path(sb3_hybrid_grpo.__file__).parent
STANDARD = {"collections", "typing", "dataclasses", "functools", "itertools", "math", "numbers"}

# modules of pure mathematics: numpy, torch and the errors, nothing else
PURE = {
    "errors": set(),
    "advantages": {"numpy", "sb3_hybrid_grpo.errors", "sb3_hybrid_grpo.transforms"},
    "transforms": {"numpy", "sb3_hybrid_grpo.errors"},
    "losses": {"torch", "sb3_hybrid_grpo.errors"},
    "gradient_variance": {"numpy", "sb3_hybrid_grpo.errors"},
    "auto_grouping": {"sb3_hybrid_grpo.gradient_variance"},
}


def imported(path: Path) -> set[str]:
    """
    :param path: A Python file
    :return: The modules that it imports anywhere, ``a.b.c`` for ``from a.b import c`` too where that is a module of ours
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            for alias in node.names:
                if (ROOT.parent / (node.module or "").replace(".", "/") / f"{alias.name}.py").exists():
                    names.add(f"{node.module}.{alias.name}")
    return names


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def ours(names: set[str]) -> set[str]:
    return {name for name in names if is_within(name, {"sb3_hybrid_grpo"}) and name != "sb3_hybrid_grpo"}


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_imports_nothing_else(module: str) -> None:
    for name in imported(ROOT / f"{module}.py"):
        assert is_within(name, PURE[module] | STANDARD), f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "branching").glob("*.py")), ids=lambda path: path.stem)
def test_branching_knows_no_torch_no_policy_no_buffer(path: Path) -> None:
    for name in imported(path):
        forbidden = {"torch", "stable_baselines3.common.policies", "stable_baselines3.common.buffers", "stable_baselines3.ppo"}
        assert not is_within(name, forbidden), f"{path.name} imports {name}"
        if is_within(name, {"sb3_hybrid_grpo"}):
            assert is_within(name, {"sb3_hybrid_grpo.branching", "sb3_hybrid_grpo.errors", "sb3_hybrid_grpo.notices"}), (
                f"{path.name} imports {name}"
            )


def test_the_buffer_calls_transforms_and_estimators_and_knows_no_env() -> None:
    assert ours(imported(ROOT / "buffers.py")) == {"sb3_hybrid_grpo.advantages", "sb3_hybrid_grpo.transforms"}


def test_the_update_knows_the_loss_and_no_buffer_and_no_env() -> None:
    assert ours(imported(ROOT / "graph_replay.py")) <= {"sb3_hybrid_grpo.notices"}
    assert ours(imported(ROOT / "flat_adam.py")) == {"sb3_hybrid_grpo.graph_replay"}
    parts = {"flat_adam", "graph_replay", "losses", "errors", "notices"}
    assert {name.split(".")[1] for name in ours(imported(ROOT / "update.py"))} <= parts


def test_the_parts_meet_in_the_algorithm_alone() -> None:
    algorithm = {"group_rollouts", "hybrid_grpo", "maskable", "recurrent"}
    for path in ROOT.glob("*.py"):
        parts = {name.split(".")[1] for name in ours(imported(path))} & {"branching", "losses", "buffers", "update"}
        if path.stem not in algorithm | {"__init__", "validation"}:  # validation asks them which words they know
            assert len(parts) < 2, f"{path.name} imports {parts}"


def test_nothing_imports_the_commands_and_benchmarks() -> None:
    commands = {"__main__", "commands", "benchmark", "zoo"}
    for path in ROOT.glob("*.py"):
        if path.stem not in commands:
            assert not {name.split(".")[1] for name in ours(imported(path))} & commands, path.name


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 330


def test_typed() -> None:
    assert (ROOT / "py.typed").exists()
