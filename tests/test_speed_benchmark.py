"""The speed benchmark runs and reports what it promises; no test looks at the speed itself."""

import argparse
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.__main__ import run_command
from sb3_hybrid_grpo.benchmark import speed, speed_cases
from sb3_hybrid_grpo.benchmark.speed_cases import BREAKOUT, Runner, Size, Speed, labels, make_envs

TINY = Size(samples=128, n_epochs=1, repeats=2, raw_seconds=0.001, warm_up=0)
SCRIPT = Path(sb3_hybrid_grpo.__file__).parents[1] / "benchmarks" / "speed_parts.py"


@pytest.fixture(autouse=True)
def _no_sbx(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sbx" else find(name))


def run(folder: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    speed.add_arguments(parser)
    return speed.run(parser.parse_args(["--output", str(folder), "--quick", *arguments]))


def test_reports_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert run(folder, "--envs", "CartPole-v1", "Pendulum-v1") == 0
    assert cores is None or os.sched_getaffinity(0) == cores
    assert str(folder / "speed.md") in capsys.readouterr().out
    page = (folder / "speed.md").read_text(encoding="utf-8")
    assert "SBX PPO was not measured in CartPole-v1, Pendulum-v1: it was not installed" in page
    assert "![Algorithms](speed.png)" in page and (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    rows = speed.ALGORITHMS.results(folder).frame
    groups = [("HybridGRPO", str(n), "256") for n in (1, 4, 8)]
    expected = [("env.step loop", "", ""), ("PPO", "", ""), ("TRPO", "", ""), *groups]
    names = ["env", "n_envs", "algorithm", "n_samples", "branch_horizon"]
    cases = list(rows[names].itertuples(index=False, name=None))
    assert cases == [(*env, *case) for env in (("CartPole-v1", "8"), ("Pendulum-v1", "4")) for case in expected]
    assert (rows.rollout_median > 0).all()
    assert rows.made_with.str.contains("torch").all() and rows.made_with.str.contains("cores").all()
    assert {(row.samples, row.repeats) for row in rows.itertuples()} == {("256", "1")}
    ours = rows[rows.algorithm == "HybridGRPO"]
    for name in ("rollout_to_ppo", "update_to_ppo", "overall_to_ppo", "rollout_to_raw"):
        assert (0 < ours[f"{name}_min"]).all() and (ours[f"{name}_min"] <= ours[f"{name}_median"]).all()
        assert (ours[f"{name}_median"] <= ours[f"{name}_max"]).all()
    assert rows.overall_to_ppo_median.isna().equals(rows.algorithm.isin(["env.step loop", "PPO"]))


def test_every_algorithm_collects_the_same_number_of_samples() -> None:
    for algorithm, groups in ((PPO, {}), (TRPO, {}), (HybridGRPO, {"n_samples": 4, "branch_horizon": 1})):
        runner = Runner(algorithm, make_envs("CartPole-v1", 2), TINY.samples, **groups)
        for count in (1, 2):
            measured = runner.measure()
            assert runner.model.num_timesteps == count * TINY.samples
            assert measured.overall < min(measured.rollout, measured.update)


def test_warms_up_for_as_many_steps_and_minibatches_as_asked() -> None:
    groups = {"n_samples": 4, "branch_horizon": 1, "n_epochs": 2}
    runner = Runner(HybridGRPO, make_envs("CartPole-v1", 2), TINY.samples, **groups)
    runner.warm_up(17)  # 16 steps a rollout, 4 minibatches an update
    assert runner.model.num_timesteps == 5 * TINY.samples
    assert runner.model._n_updates == 5 * 2


def test_ratios_are_of_one_pair() -> None:
    assert Speed(200.0, 50.0, 40.0).beside(Speed(100.0, 100.0, 50.0)) == {
        **{"rollout": 200.0, "update": 50.0, "overall": 40.0},
        **{"rollout_to_ppo": 2.0, "update_to_ppo": 0.5, "overall_to_ppo": pytest.approx(0.8)},
    }


def measured(env: str, value: float) -> list[dict[str, Any]]:
    return [
        {**labels(env, "PPO"), "n_envs": "1", "rollout": value, "update": value} for value in (value, 3 * value, 2 * value)
    ]


def test_a_new_measurement_takes_the_place_of_the_one_of_its_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "save_page", lambda _: None)
    monkeypatch.setattr(speed, "measure_speed", lambda env, _: measured(env, 1.0))
    run(tmp_path, "--envs", "CartPole-v1", "Pendulum-v1")
    monkeypatch.setattr(speed, "measure_speed", lambda env, _: measured(env, 2.0))
    run(tmp_path, "--envs", "CartPole-v1")
    rows = speed.ALGORITHMS.results(tmp_path).frame
    assert rows[["env", "rollout_median"]].values.tolist() == [["CartPole-v1", 4.0], ["Pendulum-v1", 2.0]]


def test_what_was_measured_before_a_crash_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(env: str, _: Size) -> list[dict[str, Any]]:
        if env == "Pendulum-v1":
            raise KeyboardInterrupt
        return measured(env, 1.0)

    monkeypatch.setattr(speed, "save_page", lambda _: None)
    monkeypatch.setattr(speed, "measure_speed", crash)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--envs", "CartPole-v1", "Pendulum-v1")
    assert speed.ALGORITHMS.results(tmp_path).frame.env.to_list() == ["CartPole-v1"]


def test_a_cell_shows_median_and_spread_and_the_time_of_a_sample_is_split() -> None:
    raw = {**labels("CartPole-v1", "env.step loop"), "n_envs": "8", "rollout": 100_000.0}
    ppo = {**labels("CartPole-v1", "PPO"), "n_envs": "8", "update": 4_000.0}
    rows = speed.ALGORITHMS.summarise([raw, *({**ppo, "rollout": one} for one in (10_000.0, 30_000.0, 20_000.0))], TINY)
    assert "20,000 (10,000–30,000)" in speed.section_text(speed.ALGORITHMS, rows)[2]
    cells = [cell.strip() for cell in speed.time_table(rows)[-1].splitlines()[-1].split("|")[1:-1]]
    assert cells == ["CartPole-v1", "PPO", "", "", "10.0", "40.0", "250.0", "300.0"]


def test_atari_games_are_images() -> None:
    assert make_envs(BREAKOUT, 1).observation_space.shape == (84, 84, 4)
    assert speed_cases.raw_loop(BREAKOUT, 1, 0.001)() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "file"], "'file'"),
        (["--envs", "Nowhere-v0"], "'Nowhere-v0'"),
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
    Path("old/speed.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        run_command("sb3_hybrid_grpo.benchmark.speed", "speed", ["--quick", "--envs", "CartPole-v1", *arguments])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    """The script with the benchmark's other parts."""
    if not SCRIPT.is_file():
        pytest.skip("runs without the benchmarks")
    spec = importlib.util.spec_from_file_location("speed_parts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(part: Any, measurements: list[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """What was measured fits the part's table, and comes back from its file."""
    part.section.results(folder).add(part.section.summarise(measurements, TINY))
    rows = part.section.results(folder).frame
    assert set(rows.columns) >= set(part.section.labels)
    return rows


def test_updates_of_as_many_states(parts: ModuleType, tmp_path: Path) -> None:
    rows = summary(parts.PARTS["states"], parts.measure_states("CartPole-v1", TINY, members=[4]), tmp_path)
    names = ["algorithm", "n_samples", "minibatch_states"]
    assert rows[names].values.tolist() == [["PPO", "", "64"], ["HybridGRPO", "4", "64"], ["HybridGRPO", "4", "16"]]
    np.testing.assert_array_less(0, rows.update_to_ppo_median[1:])


def test_rollouts_in_processes(parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InProcess(DummyVecEnv):
        """Starts no processes, which would take long."""

    monkeypatch.setattr(parts, "SubprocVecEnv", InProcess)
    rows = summary(parts.PARTS["workers"], parts.measure_workers("CartPole-v1", TINY), tmp_path)
    places = [("InProcess", "1"), ("DummyVecEnv", "2"), ("InProcess", "2")]
    algorithms = [("PPO", "", ""), ("HybridGRPO", "8", "1"), ("HybridGRPO", "8", "64")]
    names = ["algorithm", "n_samples", "branch_horizon", "vec_env", "n_envs"]
    found = list(rows[names].itertuples(index=False, name=None))
    assert found == [(*algorithm, *place) for algorithm in algorithms for place in places]


def test_growth_varies_one_thing_at_a_time(parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "POINTS", {"n_samples": (2,), "n_envs": (1,), "width": (8, 16)})
    rows = summary(parts.PARTS["scaling"], parts.measure_growth("CartPole-v1", TINY), tmp_path)
    assert list(dict.fromkeys(zip(rows.varied, rows.value, strict=True))) == [
        *(("n_samples", "2"), ("n_envs", "1"), ("width", "8"), ("width", "16"))
    ]
    assert rows.groupby(["varied", "value"]).size().unique().tolist() == [3]
    parts.save_page(tmp_path)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "## How cost grows" in (tmp_path / "parts.md").read_text(encoding="utf-8")


def test_memory_of_buffers(parts: ModuleType) -> None:
    ppo, ours = (parts.memory_here("CartPole-v1", 128, **groups) for groups in ({}, {"n_samples": 4, "branch_horizon": 64}))
    assert 128 * 4 * 4 / parts.MEBI < ppo["buffer"] < ours["buffer"] < 5 * ppo["buffer"]
