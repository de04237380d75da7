"""The speed benchmark runs and reports what it promises; no test looks at the speed itself."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from sb3_contrib import TRPO
from stable_baselines3 import PPO

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark import speed, speed_algorithms, speed_cases, speed_page
from sb3_hybrid_grpo.benchmark.speed_cases import Size, Sizes, build, make_envs
from sb3_hybrid_grpo.benchmark.speed_report import Column, Row
from sb3_hybrid_grpo.benchmark.speed_runner import Speed, one_core

TINY = Size(samples=128, n_epochs=1, repeats=2, raw_seconds=0.001, warm_up=0)
SIZES = Sizes(TINY, TINY, TINY, states=64)


@pytest.fixture(autouse=True)
def _no_sbx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_algorithms, "sbx_ppo", lambda: None)


def table(folder: Path, section: str) -> list[dict[str, str]]:
    with (folder / f"{section}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_reports_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    speed.run(folder, SIZES, ["speed"], ["CartPole-v1", "Pendulum-v1"])
    page = (folder / "speed.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "SBX PPO was not measured in CartPole-v1, Pendulum-v1: it was not installed" in page
    assert "![Algorithms](speed.png)" in page and (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    rows = table(folder, "speed")
    cases = [(row["env"], row["n_envs"], row["algorithm"], row["n_samples"], row["branch_horizon"]) for row in rows]
    groups = [("HybridGRPO", str(n), str(k)) for n in (1, 4, 8, 16) for k in (1, 64)]
    expected = [("env.step loop", "", ""), ("PPO", "", ""), ("TRPO", "", ""), *groups]
    assert cases == [(*env, *case) for env in (("CartPole-v1", "8"), ("Pendulum-v1", "4")) for case in expected]
    ratios = [f"{name}_to_ppo" for name in ("rollout", "update", "overall")]
    for row in rows:
        assert float(row["rollout_median"]) > 0
        assert row["cpu"] and row["cores"] and row["torch"] and row["stable_baselines3"] and row["python"]
        assert (row["torch_threads"], row["samples"], row["repeats"]) == ("1", "128", "2")
        for name in [*ratios, "rollout_to_raw"] if row["algorithm"] == "HybridGRPO" else ["rollout"]:
            assert 0 < float(row[f"{name}_min"]) <= float(row[f"{name}_median"]) <= float(row[f"{name}_max"])
        assert (row["overall_to_ppo_median"] == "") == (row["algorithm"] in ("env.step loop", "PPO"))


def test_every_algorithm_collects_the_same_number_of_samples() -> None:
    for algorithm, groups in ((PPO, {}), (TRPO, {}), (HybridGRPO, {"n_samples": 4, "branch_horizon": 1})):
        runner = build(algorithm, make_envs("CartPole-v1", 2), TINY.samples, **groups)
        measured = runner.measure()
        assert runner.simulator_steps() == runner.samples == TINY.samples
        assert measured.overall < min(measured.rollout, measured.update)


def test_warms_up_for_as_many_steps_and_minibatches_as_asked() -> None:
    groups = {"n_samples": 4, "branch_horizon": 1, "n_epochs": 2}
    runner = build(HybridGRPO, make_envs("CartPole-v1", 2), TINY.samples, **groups)
    runner.warm_up(17)
    assert runner.simulator_steps() == 2 * TINY.samples  # 16 steps a rollout
    assert runner.model._n_updates == 5 * 2  # 4 minibatches an update


def test_ratios_are_of_one_pair() -> None:
    beside = Speed(rollout=200.0, update=50.0).beside(Speed(rollout=100.0, update=100.0))
    assert beside == {
        **{"rollout": 200.0, "update": 50.0, "overall": pytest.approx(40.0)},
        **{"rollout_to_ppo": 2.0, "update_to_ppo": 0.5, "overall_to_ppo": pytest.approx(0.8)},
    }


def test_a_new_measurement_takes_the_place_of_the_one_of_its_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.SECTIONS, "speed", speed.SECTIONS["speed"]._replace(measure=_one_row(1.0)))
    speed.run(tmp_path, SIZES, ["speed"], ["CartPole-v1", "Pendulum-v1"])
    monkeypatch.setitem(speed.SECTIONS, "speed", speed.SECTIONS["speed"]._replace(measure=_one_row(2.0)))
    speed.run(tmp_path, SIZES, ["speed"], ["CartPole-v1"])
    assert [(row["env"], row["rollout_median"]) for row in table(tmp_path, "speed")] == [
        ("CartPole-v1", "2"),
        ("Pendulum-v1", "1"),
    ]


def test_what_was_measured_before_a_crash_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(env_id: str, sizes: Sizes, done: speed.Done) -> list[Row]:
        if env_id == "Pendulum-v1":
            raise KeyboardInterrupt
        return _one_row(1.0)(env_id, sizes, done)

    monkeypatch.setitem(speed.SECTIONS, "speed", speed.SECTIONS["speed"]._replace(measure=crash))
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.raises(KeyboardInterrupt):
        speed.run(tmp_path, SIZES, ["speed"], ["CartPole-v1", "Pendulum-v1"])
    assert [row["env"] for row in table(tmp_path, "speed")] == ["CartPole-v1"]
    assert "| CartPole-v1 |" in (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert cores is None or os.sched_getaffinity(0) == cores


def _one_row(value: float) -> speed.Measure:
    def measure(env_id: str, sizes: Sizes, done: speed.Done) -> list[Row]:
        labels = {**speed_algorithms.labels_of(env_id, "PPO"), "n_envs": "1"}
        done(labels["algorithm"])
        return [Row(labels, sizes.of(env_id).settings(), {"rollout": [value]})]

    return measure


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinities")
def test_one_core() -> None:
    before = os.sched_getaffinity(0)
    with one_core():
        assert all(len(os.sched_getaffinity(int(thread))) == 1 for thread in os.listdir("/proc/self/task"))
    assert os.sched_getaffinity(0) == before


def test_sbx_is_no_requirement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert speed_cases.sbx_ppo() is None


def test_rows_made_otherwise_are_told_apart() -> None:
    first = Row({"env": "A"}, {"samples": "1", "cpu": "x"})
    assert speed_page.made_with([first, first], "env") == "samples 1, cpu x."
    second = Row({"env": "B"}, {"samples": "2", "cpu": "x"})
    assert speed_page.made_with([first, second], "env") == "cpu x; A: samples 1; B: samples 2."


def test_cell_shows_median_and_spread() -> None:
    row = Row({"env": "CartPole-v1"}, {})
    column = Column("rollout", "rollout")
    assert column.cell(row) == ""
    for value in (1.0, 3.0, 2.0):
        row.add(rollout=value)
    assert column.cell(row) == "2.00 (1.00–3.00)"


def test_works_without_tqdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with speed.progress(1) as (done, env_done):
        done("one case")
        env_done()
    assert "one case" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "file"], "'file'"),
        (
            ["--sections", "workers", "--envs", "CartPole-v1"],
            "--envs CartPole-v1, needs an env that a chosen section has: workers",
        ),
        (["--sections", "spead"], "'spead'"),
        (["--output", "old"], "holds no results of this benchmark: its columns are ['a', 'b']"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("old").mkdir()
    Path("old/states.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--quick", *arguments])
    assert message in " ".join(capsys.readouterr().err.split())


def test_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ale_py" else find(name))
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--envs", "BreakoutNoFrameskip-v4"])
    assert "needs ale_py; install with" in capsys.readouterr().err
