"""The speed benchmark runs and reports what it promises; no test looks at the speed itself."""

import csv
from pathlib import Path

import pytest
from sb3_contrib import TRPO
from stable_baselines3 import PPO

from sb3_hybrid_grpo.benchmark import speed
from sb3_hybrid_grpo.benchmark.speed_report import RATIOS, SPEEDS, Row

TINY = speed.Size(samples=128, n_epochs=1, repeats=2, raw_seconds=0.001, warm_up=0)


def test_reports_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speed.run(tmp_path / "new", TINY, {"CartPole-v1": 2, "Pendulum-v1": 1})
    table = (tmp_path / "new" / "speed.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    with (tmp_path / "new" / "speed.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [(row["env"], row["algorithm"], row["n_samples"], row["branch_horizon"]) for row in rows]
    groups = [("HybridGRPO", str(n), str(k)) for n in (1, 4, 8, 16) for k in (1, 64)]
    expected = [("env.step loop", "", ""), ("PPO", "", ""), ("TRPO", "", ""), *groups]
    assert cases == [(env, *case) for env in ("CartPole-v1", "Pendulum-v1") for case in expected]
    for row in rows:
        assert float(row["rollout_per_second"]) > 0
        assert row["cpu"] and row["cores"] and row["torch"] and row["stable_baselines3"] and row["python"]
        assert row["torch_threads"] == "1"
        if row["algorithm"] == "HybridGRPO":
            assert all(float(row[f"{name}_per_second"]) > 0 for name in SPEEDS)
            assert all(float(row[f"{r}_min"]) <= float(row[f"{r}_median"]) <= float(row[f"{r}_max"]) for r in RATIOS)


def test_every_algorithm_collects_the_same_number_of_samples() -> None:
    peers = [speed.build_peer(algorithm, "CartPole-v1", 2, TINY) for algorithm in (PPO, TRPO)]
    groups = speed.build_runner("CartPole-v1", 2, TINY, n_samples=4, branch_horizon=1)
    for runner in (*peers, groups):
        measured = runner.measure()
        assert runner.simulator_steps() == TINY.samples
        assert measured.overall < min(measured.rollout, measured.update)


def test_warms_up_for_as_many_steps_as_asked() -> None:
    runner = speed.build_runner("CartPole-v1", 2, TINY, n_samples=4, branch_horizon=1)
    runner.warm_up(17)
    assert runner.simulator_steps() == 2 * TINY.samples  # of 16 steps each


def test_ratio_shows_median_and_spread() -> None:
    row = Row("CartPole-v1", 8, "HybridGRPO", 4, 64)
    for value in (1.0, 3.0, 2.0):
        row.add(rollout_to_ppo=value)
    assert row.ratio("rollout_to_ppo") == "2.00 (1.00–3.00)"
    assert row.ratio("update_to_ppo") == ""
    assert row.speed("rollout") == ""


def test_works_without_tqdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with speed.progress(1) as done:
        done("one case")
    assert "one case" in capsys.readouterr().err


def test_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        speed.main(["--quick", "--output", str(file)])
    assert stop.value.code == 2
    assert str(file) in capsys.readouterr().err
