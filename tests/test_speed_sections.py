"""The sections of the speed benchmark besides the algorithms'; no test looks at the speed itself."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.benchmark import (
    speed_algorithms,
    speed_branching,
    speed_cases,
    speed_memory,
    speed_page,
    speed_plot,
    speed_scaling,
)
from sb3_hybrid_grpo.benchmark.speed_report import Row, add_rows, read_rows
from sb3_hybrid_grpo.benchmark.speed_runner import Runner
from sb3_hybrid_grpo.branching import BranchingReport, costs
from sb3_hybrid_grpo.errors import BranchingError

TINY = speed_cases.Size(samples=64, n_epochs=1, repeats=2, raw_seconds=0.001, warm_up=0)
OBSERVATION = 4 * 4
"""Bytes of an observation of CartPole."""


def done(case: str) -> None:
    """Nobody waits for it."""


def labels(rows: list[Row], *names: str) -> list[tuple[str, ...]]:
    return [tuple(row.labels[name] for name in names) for row in rows]


def check_table(folder: Path, section: str, rows: list[Row]) -> None:
    """What was measured fits the section's table, and comes back from its file."""
    table = speed_page.TABLES[section]
    add_rows(folder, table, rows)
    again = read_rows(folder, table)
    assert [row.labels for row in again] == [{name: row.labels[name] for name in table.labels} for row in rows]
    assert [row.values.keys() for row in again] == [row.values.keys() for row in rows]
    page = speed_page.save_page(folder)
    assert f"## {table.title}" in page and all(column.title in page for column in table.columns)


def test_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Any] = []

    def recorded(*arguments: Any, **named: Any) -> Runner:
        runner = speed_cases.build(*arguments, **named)
        models.append(runner.model)
        return runner

    monkeypatch.setattr(speed_algorithms, "build", recorded)
    rows = speed_algorithms.measure_states("CartPole-v1", TINY, done, members=[4])
    assert labels(rows, "algorithm", "n_samples", "minibatch_states") == [
        *(("PPO", "", "64"), ("HybridGRPO", "4", "64"), ("HybridGRPO", "4", "16")),
    ]
    assert {model.n_steps * model.n_envs for model in models} == {TINY.samples}  # as many states
    assert [model.batch_size for model in models] == [64, 4 * 64, 4 * 16]
    assert [len(row.values["update"]) for row in rows] == [4, 2, 2]
    own, peers = rows[1].values, rows[0].values["update"]
    assert own["update_to_ppo"] == [own["update"][0] / peers[0], own["update"][1] / peers[2]]
    check_table(tmp_path, "states", rows)


def test_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InProcess(DummyVecEnv):
        """Starts no processes, which would take long."""

    monkeypatch.setattr(speed_algorithms, "SubprocVecEnv", InProcess)
    rows = speed_algorithms.measure_workers("CartPole-v1", TINY, done)
    places = [("InProcess", "1"), ("DummyVecEnv", "2"), ("InProcess", "2")]
    algorithms = [("PPO", "", ""), ("HybridGRPO", "8", "1"), ("HybridGRPO", "8", "64")]
    found = labels(rows, "algorithm", "n_samples", "branch_horizon", "vec_env", "n_envs")
    assert found == [(*algorithm, *place) for algorithm in algorithms for place in places]
    for one, dummy, two in (rows[:3], rows[3:6], rows[6:]):
        speeds = [row.values["rollout"][0] for row in (one, dummy, two)]
        assert two.values["to_one"][0] == speeds[2] / speeds[0]
        assert two.values["to_dummy"][0] == speeds[2] / speeds[1]
    check_table(tmp_path, "workers", rows)


def test_scaling_varies_one_thing_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[Any, ...]] = []

    def recorded(algorithm: Any, env: Any, samples: int, **arguments: Any) -> Runner:
        runner = speed_cases.build(algorithm, env, samples, **arguments)
        width = runner.model.policy.mlp_extractor.policy_net[0].out_features
        built.append((algorithm.__name__, arguments.get("n_samples", 1), env.num_envs, width, runner.samples))
        return runner

    monkeypatch.setattr(speed_scaling, "build", recorded)
    points = {"n_samples": (2,), "n_envs": (1,), "width": (8, 16)}
    rows = speed_scaling.measure_scaling("CartPole-v1", TINY, done, points, horizons=[1])
    assert built == [
        *(("PPO", 1, 4, 64, 64), ("HybridGRPO", 2, 4, 64, 64)),
        *(("PPO", 1, 1, 64, 64), ("HybridGRPO", 4, 1, 64, 64)),
        *(("PPO", 1, 4, 8, 64), ("HybridGRPO", 4, 4, 8, 64), ("PPO", 1, 4, 16, 64), ("HybridGRPO", 4, 4, 16, 64)),
    ]
    expected = [("n_samples", "2"), ("n_envs", "1"), ("width", "8"), ("width", "16")]
    assert labels(rows, "varied", "value")[::2] == labels(rows, "varied", "value")[1::2] == expected
    check_table(tmp_path, "scaling", rows)
    assert speed_plot.save_plots(tmp_path) == [tmp_path / "scaling.png"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_branching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    rows = speed_branching.measure_branching("CartPole-v1", 2, done)
    assert labels(rows, "n_samples", "branch_horizon", "siblings") == [("8", "1", "snapshots"), ("8", "64", "copies")]
    assert all(len(values) == 2 and min(values) > 0 for row in rows for values in row.values.values())
    check_table(tmp_path, "branching", rows)


def test_an_env_that_cannot_be_branched_is_named() -> None:
    with pytest.raises(BranchingError, match="cannot be branched"):
        speed_branching.measure_branching("tests.toy_envs:Unbranchable-v0", 1, done)


def test_cost_of_a_sibling() -> None:
    # a group of 4 takes as long as 10 plain steps, one of which is the executed member's
    report = BranchingReport("env", "copied", "", (), 1.0, 1.0, 1.0, 4, 64, 10.0, 2.5)
    assert speed_branching.sibling_cost(report) == 3.0


def test_memory_of_buffers() -> None:
    ppo, one, many = (
        speed_memory.measure_here(speed_memory.Case("CartPole-v1", 64, *group))["buffer"] * 2**20
        for group in ((), (4, 1), (4, 64))
    )
    assert 64 * OBSERVATION < ppo < one
    assert many - one == 3 * 64 * OBSERVATION  # with K = 1, members share an observation


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = speed_memory.Case("CartPole-v1", 64, 4, 1)
    apart = speed_memory.measure_apart(case)
    assert apart["buffer"] == speed_memory.measure_here(case)["buffer"]
    assert (apart.get("peak", 0.0) > 0) == Path("/proc/self/status").exists()

    found = {None: {"buffer": 2.0, "peak": 8.0}, 4: {"buffer": 3.0, "peak": 4.0}}
    monkeypatch.setattr(speed_memory, "measure_apart", lambda case: found[case.n_samples])
    rows = speed_memory.measure_memory("CartPole-v1", 64, 1, done, groups=[(4, 1)])
    assert rows[1].values == {"buffer": [3.0], "peak": [4.0], "buffer_to_ppo": [1.5], "peak_to_ppo": [0.5]}
    check_table(tmp_path, "memory", rows)


def test_a_process_that_fails_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], returncode=3, stdout="", stderr="out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="exit code 3:\nout of memory"):
        speed_memory.measure_apart(speed_memory.Case("CartPole-v1", 64))


def test_atari_games_are_images() -> None:
    env = speed_cases.make_envs(speed_cases.BREAKOUT, 1)
    assert env.observation_space.shape == (84, 84, 4)
    assert speed_cases.make_one(speed_cases.BREAKOUT).observation_space.shape == (84, 84, 1)
    assert speed_cases.FULL.of(speed_cases.BREAKOUT) is speed_cases.FULL.images
    assert speed_cases.FULL.of("CartPole-v1") is speed_cases.FULL.vectors


def test_the_time_of_a_sample_is_split() -> None:
    labels = {"env": "CartPole-v1", "n_envs": "8", "algorithm": "PPO", "n_samples": "", "branch_horizon": ""}
    raw = Row({**labels, "algorithm": "env.step loop"}, {})
    raw.add(rollout=100_000.0)
    ppo = Row(labels, {})
    ppo.add(rollout=20_000.0, update=4_000.0)
    table = speed_page.time_table([raw, ppo])
    assert "| CartPole-v1 | PPO |  |  | 10.0 | 40.0 | 250.0 | 300.0 |" in table
    assert "env.step loop" not in table
