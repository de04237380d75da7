"""The compare command: equal terms for everyone, and results that no failure loses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sb3_hybrid_grpo.__main__ import main
from sb3_hybrid_grpo.benchmark.pool import Ended, Evaluated, execute
from sb3_hybrid_grpo.benchmark.presets import PRESETS, Preset
from sb3_hybrid_grpo.benchmark.results import Results, Row, read_rows
from sb3_hybrid_grpo.benchmark.variants import ALGORITHMS, make_variant
from sb3_hybrid_grpo.benchmark.worker import Run
from sb3_hybrid_grpo.benchmark.worker import execute as work
from sb3_hybrid_grpo.cli import CommandError


def compare_args(folder: Path, *more: str) -> list[str]:
    small = ["--budget", "512", "--seeds", "1", "--update-sizes", "256", "--evaluations", "2", "--episodes", "2"]
    return ["compare", "--env", "CartPole-v1", *small, "--jobs", "2", "--output", str(folder), *more]


def a_run(algorithm: str = "ppo", env: str = "CartPole-v1", **more: Any) -> Run:
    variant = make_variant(algorithm, {"n_epochs": 1}, n_steps=32, update_size=256, batch_size=64)
    return Run(env, variant, **{"seed": 0, "budget": 512, "evaluations": 2, "episodes": 2, "normalize": True, **more})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("update_size", [64, 256, 2048])
def test_every_algorithm_gets_the_same_data_an_update(algorithm: str, update_size: int) -> None:
    variant = make_variant(algorithm, {"gamma": 0.9, "clip_range": 0.1}, n_steps=128, update_size=update_size, batch_size=32)
    assert variant.update_size == update_size
    assert variant.arguments["gamma"] == 0.9
    assert variant.arguments["batch_size"] == 32
    assert ("clip_range" in variant.arguments) == (algorithm != "trpo")  # which has none


def test_settings_name_the_shape_and_arguments_of_its_own_win() -> None:
    variant = make_variant("hybrid,n_samples:8,branch_horizon:episode,gamma:0.5", {"gamma": 0.9}, 128, 2048, 64)
    assert variant.settings == "n_envs:2 n_steps:128 batch_size:64 n_samples:8 branch_horizon:episode"
    assert variant.arguments["gamma"] == 0.5


def test_evaluations_are_spread_evenly_and_count_siblings() -> None:
    rows: list[Row] = []
    work(a_run("hybrid", budget=1024, evaluations=2), rows.append)
    assert [row.simulator_steps for row in rows] == [0, 512, 1024]
    assert [row.executed_steps for row in rows] == [0, 128, 256]
    assert rows[0].wall_seconds < rows[1].wall_seconds < rows[2].wall_seconds
    assert {row.episodes for row in rows} == {2}


def test_the_last_whole_update_within_the_budget_ends_a_run() -> None:
    rows: list[Row] = []
    work(a_run(budget=700, evaluations=1), rows.append)
    assert [row.simulator_steps for row in rows] == [0, 512]


def test_all_algorithms_are_evaluated_on_the_same_episodes() -> None:
    untrained = {}
    for algorithm in ("ppo", "hybrid"):
        rows: list[Row] = []
        work(a_run(algorithm, normalize=False), rows.append)
        untrained[algorithm] = rows[0].mean_reward
    assert untrained["ppo"] == untrained["hybrid"]  # one seed, one network, one set of episodes


def test_results_are_tidy_and_a_second_call_does_nothing_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compare_args(tmp_path, "--algorithms", "ppo", "trpo", "hybrid", "paper", "grpo")) == 0
    path = tmp_path / "CartPole-v1.csv"
    rows = read_rows(path)
    assert {row.algorithm for row in rows} == set(ALGORITHMS)
    assert all(len([row for row in rows if row.algorithm == name]) == 3 for name in ALGORITHMS)
    before = path.read_bytes()
    assert main(compare_args(tmp_path, "--algorithms", "ppo", "hybrid")) == 0
    assert "0 runs to go" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_more_seeds_and_algorithms_are_added(tmp_path: Path) -> None:
    assert main(compare_args(tmp_path, "--algorithms", "ppo")) == 0
    first = read_rows(tmp_path / "CartPole-v1.csv")
    assert main(compare_args(tmp_path, "--algorithms", "ppo", "trpo", "--seeds", "2")) == 0
    rows = read_rows(tmp_path / "CartPole-v1.csv")
    assert rows[: len(first)] == first
    assert {row.run[::2] for row in rows} == {("ppo", 0), ("ppo", 1), ("trpo", 0), ("trpo", 1)}


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compare_args(tmp_path, "--algorithms", "ppo")) == 0
    for other in (["--episodes", "3"], ["--budget", "768"], ["--hyperparams", "gamma:0.5"]):
        with pytest.raises(SystemExit) as stop:
            main(compare_args(tmp_path, "--algorithms", "ppo", *other))
        assert stop.value.code == 2
        assert "holds results of other settings" in capsys.readouterr().err
    (tmp_path / "CartPole-v1.json").unlink()
    with pytest.raises(SystemExit):
        main(compare_args(tmp_path, "--algorithms", "ppo"))
    assert "cannot be read" in capsys.readouterr().err


def test_a_csv_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CartPole-v1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CommandError, match="holds no results of a comparison"):
        Results(tmp_path, "CartPole-v1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["--algorithms", "sac"], "known are ppo, trpo, hybrid, paper, grpo"),
        (["--algorithms", "ppo,n_samples:4"], "unknown key 'n_samples'"),
        (["--algorithms", "hybrid,n_samples"], "needs key:value"),
        (["--budget", "100"], "less than one rollout"),
        (["--algorithms", "paper,action_selection:greedy", "--budget", "256"], "less than one rollout"),
        (["--update-sizes", "250"], "cannot be spread"),
        (["--budget", "0"], "at least 1"),
    ],
)
def test_bad_input_ends_before_anything_is_run(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(compare_args(tmp_path, *arguments))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_env_that_cannot_be_branched_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = compare_args(tmp_path, "--env", "tests.toy_envs:Unbranchable-v0", "--algorithms", "ppo", "hybrid")
    assert main(arguments) == 1
    assert {row.algorithm for row in read_rows(tmp_path / "Unbranchable-v0.csv")} == {"ppo"}
    out = capsys.readouterr().out
    assert "FAILED: tests.toy_envs:Unbranchable-v0 hybrid" in out
    assert "BranchingError" in out


def test_a_worker_that_dies_takes_no_other_with_it() -> None:
    runs = [a_run(env="tests.toy_envs:Dying-v0"), a_run()]
    events = list(execute(runs, jobs=2))
    ended = {event.number: event for event in events if isinstance(event, Ended)}
    assert ended[0].error is not None and "exit code 77" in ended[0].error
    assert ended[1].error is None
    assert len(ended[1].rows) == 3
    assert [event.row for event in events if isinstance(event, Evaluated)] == ended[1].rows


def test_an_interruption_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = compare_args(tmp_path, "--budget", "1_000_000", "--algorithms", "ppo", "--evaluations", "100")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started where it is ignored inherits that
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_hybrid_grpo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, handler)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob("*.json")) and time.monotonic() < deadline:  # the first run begins
        time.sleep(0.2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Finished runs are kept" in out


def test_a_crash_while_writing_leaves_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path, "CartPole-v1")
    row = Row("CartPole-v1", "ppo", "n_envs:1", 0, 0, 0, 0.0, 1.5, 2)
    results.add([row])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.add([row])
    assert read_rows(tmp_path / "CartPole-v1.csv") == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["CartPole-v1.csv"]


def test_the_protocol_says_what_made_the_results(tmp_path: Path) -> None:
    results = Results(tmp_path, "hybrid_grpo/Queue-v0")
    results.check({"budget": 10})
    results.add([Row("hybrid_grpo/Queue-v0", "ppo", "n_envs:1", 0, 0, 0, 0.0, 1.5, 2)])
    Results(tmp_path, "hybrid_grpo/Queue-v0").check({"budget": 10})
    protocol = json.loads((tmp_path / "hybrid_grpo-Queue-v0.json").read_text())
    assert protocol["budget"] == 10
    assert len(protocol["made_with"]) == 1
    assert {"torch", "stable_baselines3", "machine"} <= set(protocol["made_with"][0])


@pytest.mark.parametrize("preset", [*PRESETS.values(), Preset()])
def test_presets_suit_every_algorithm(preset: Preset) -> None:
    for update_size in preset.update_sizes:
        assert preset.budget >= update_size
        for algorithm in ALGORITHMS:
            variant = make_variant(algorithm, preset.hyperparams, preset.n_steps, update_size, preset.batch_sizes[0])
            assert variant.update_size == update_size
