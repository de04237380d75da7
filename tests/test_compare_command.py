"""The compare command: equal terms for everyone, and results that no failure loses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sb3_hybrid_grpo.__main__ import main
from sb3_hybrid_grpo.benchmark.compare import note_protocol
from sb3_hybrid_grpo.benchmark.presets import PRESETS, Preset
from sb3_hybrid_grpo.benchmark.results import Results, write_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY, Row, Run, execute, side_by_side
from sb3_hybrid_grpo.benchmark.variants import ALGORITHMS, make_variant
from sb3_hybrid_grpo.commands.cli import CommandError


def compare_args(folder: Path, *more: str) -> list[str]:
    small = ["--budget", "512", "--seeds", "1", "--update-sizes", "256", "--evaluations", "2", "--episodes", "2"]
    return ["compare", "--env", "CartPole-v1", *small, "--jobs", "2", "--output", str(folder), *more]


def a_run(algorithm: str = "ppo", env: str = "CartPole-v1", **more: Any) -> Run:
    preset = Preset(hyperparams={"n_epochs": 1}, executed_steps=32)
    variant = make_variant(algorithm, preset, update_size=256, batch_size=64)
    return Run(env, variant, **{"seed": 0, "budget": 512, "evaluations": 2, "episodes": 2, "normalize": True, **more})


def rows_of(run: Run) -> pd.DataFrame:
    rows: list[Row] = []
    execute(run, rows.append)
    return pd.DataFrame(rows)


def table(folder: Path, name: str = "CartPole-v1") -> pd.DataFrame:
    return Results(folder / f"{name}.csv", COLUMNS, KEY).frame


def a_row(**more: Any) -> pd.DataFrame:
    values = ("CartPole-v1", "ppo", "n_envs:1", 0, 0, 0, 0.0, 1.5, 2, 0.5)
    return pd.DataFrame([dict(zip(COLUMNS, values, strict=True)) | more])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("update_size", [64, 256, 2048])
def test_every_algorithm_gets_the_same_data_an_update(algorithm: str, update_size: int) -> None:
    preset = Preset(hyperparams={"gamma": 0.9, "clip_range": 0.1})
    variant = make_variant(algorithm, preset, update_size, batch_size=32)
    assert variant.update_size == update_size
    assert variant.arguments["gamma"] == 0.9
    assert variant.arguments["batch_size"] == 32
    assert ("clip_range" in variant.arguments) == (algorithm != "trpo")  # which has none


def test_settings_name_the_shape_and_arguments_of_its_own_win() -> None:
    variant = make_variant("hybrid,n_samples:8,branch_horizon:episode,gamma:0.5", Preset(hyperparams={"gamma": 0.9}), 2048, 64)
    assert variant.settings == "n_envs:2 n_steps:1024 batch_size:64 n_samples:8 branch_horizon:episode"
    assert variant.arguments["gamma"] == 0.5


def test_with_n_envs_the_class_alone_is_swapped() -> None:
    ppo, ours = (make_variant(name, Preset(n_envs=2), 2048, 64) for name in ("ppo", "hybrid"))
    assert (ppo.n_envs, ppo.arguments["n_steps"]) == (ours.n_envs, ours.arguments["n_steps"]) == (2, 1024)


@pytest.mark.parametrize("horizon", ["auto", "4"])
def test_evaluations_are_spread_evenly_and_count_siblings(horizon: str) -> None:
    rows = rows_of(a_run(f"hybrid,branch_horizon:{horizon}", budget=1024, evaluations=2))
    assert rows.simulator_steps.to_list() == [0, 512, 1024]
    assert rows.executed_steps.to_list() == ([0, 512, 1024] if horizon == "auto" else [0, 128, 256])
    assert rows.wall_seconds.is_monotonic_increasing and rows.wall_seconds.is_unique
    assert set(rows.episodes) == {2}
    assert np.isnan(rows.gradient_variance_ratio.iloc[0]) and (horizon == "auto" or rows.gradient_variance_ratio.iloc[-1] > 0)


def test_the_last_whole_update_within_the_budget_ends_a_run() -> None:
    assert rows_of(a_run(budget=700, evaluations=1)).simulator_steps.to_list() == [0, 512]


def test_all_algorithms_are_evaluated_on_the_same_episodes() -> None:
    ppo, ours = (rows_of(a_run(algorithm, normalize=False)).mean_reward[0] for algorithm in ("ppo", "hybrid"))
    assert ppo == ours  # one seed, one network, one set of episodes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_results_are_tidy(algorithm: str) -> None:
    rows = rows_of(a_run(algorithm))
    assert list(rows) == list(COLUMNS) and set(rows.algorithm) == {algorithm}
    assert rows.simulator_steps.to_list() == [0, 256, 512]


def test_only_missing_runs_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compare_args(tmp_path, "--algorithms", "ppo")) == 0
    assert f"python -m sb3_hybrid_grpo compare report {tmp_path}" in capsys.readouterr().out
    first, before = table(tmp_path), (tmp_path / "CartPole-v1.csv").read_bytes()
    assert main(compare_args(tmp_path, "--algorithms", "ppo")) == 0
    assert "0 runs to go" in capsys.readouterr().out
    assert (tmp_path / "CartPole-v1.csv").read_bytes() == before

    assert main(compare_args(tmp_path, "--algorithms", "ppo", "trpo", "--seeds", "2")) == 0
    rows = table(tmp_path)
    pd.testing.assert_frame_equal(rows[: len(first)], first)
    assert set(zip(rows.algorithm, rows.seed, strict=True)) == {("ppo", 0), ("ppo", 1), ("trpo", 0), ("trpo", 1)}

    for other in (["--episodes", "3"], ["--budget", "768"], ["--hyperparams", "gamma:0.5"]):
        with pytest.raises(SystemExit) as stop:
            main(compare_args(tmp_path, "--algorithms", "ppo", *other))
        assert stop.value.code == 2
        assert "holds results of other settings" in capsys.readouterr().err
        assert len(table(tmp_path)) == len(rows)
    (tmp_path / "CartPole-v1.json").unlink()
    with pytest.raises(SystemExit):
        main(compare_args(tmp_path, "--algorithms", "ppo"))
    assert "is missing: restore it" in capsys.readouterr().err


def test_results_of_another_version_are_not_mixed_in(tmp_path: Path) -> None:
    results = Results(tmp_path / "CartPole-v1.csv", COLUMNS, KEY)
    results.add(a_row())
    write_notes(tmp_path / "CartPole-v1.json", {"budget": 10, "made_with": [{"sb3_hybrid_grpo": "0.0.9"}]})
    with pytest.raises(CommandError, match=r"version is .*, there \['0\.0'\]"):
        note_protocol(results, {"budget": 10})


def test_a_csv_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CartPole-v1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CommandError, match=r"holds no results of this benchmark: its columns are \['a', 'b'\]"):
        table(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["--algorithms", "sac"], "known are ppo, trpo, hybrid, paper, grpo"),
        (["--algorithms", "ppo,n_samples:4"], "unexpected keyword argument 'n_samples'"),
        (["--algorithms", "hybrid,n_samples"], "needs key:value"),
        (["--budget", "100"], "less than an update"),
        (["--n-envs", "3"], "cannot be spread"),
        (["--algorithms", "hybrid,branch_horizon:0"], "hybrid,branch_horizon:0: Received branch_horizon=0"),
        (["--algorithms", "hybrid,branch_horizon:free"], "hybrid,branch_horizon:free: Received branch_horizon='free'"),
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


def test_a_run_that_fails_is_named_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*compare_args(tmp_path, "--algorithms", "ppo"), "--env", "tests.toy_envs:Dying-v0"]) == 1
    assert not len(table(tmp_path, "Dying-v0"))
    assert "FAILED: tests.toy_envs:Dying-v0 ppo" in capsys.readouterr().out
    (failed,) = json.loads((tmp_path / "Dying-v0.json").read_text())["failed"]
    assert failed["algorithm"] == "ppo" and "exit code 77" in failed["error"]


def test_a_worker_that_dies_takes_no_other_with_it() -> None:
    runs, said = [a_run(env="tests.toy_envs:Dying-v0"), a_run()], list[str]()
    ended = {run.env: future for run, future in side_by_side(runs, 2, said.append)}
    assert "exit code 77" in str(ended["tests.toy_envs:Dying-v0"].exception())
    assert len(ended["CartPole-v1"].result()) == len(said) == 3


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
    results = Results(tmp_path / "CartPole-v1.csv", COLUMNS, KEY)
    results.add(a_row())
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.add(a_row(seed=1))
    assert table(tmp_path).seed.to_list() == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["CartPole-v1.csv"]


def test_a_run_takes_the_place_of_one_with_its_key_and_figures_keep_their_digits(tmp_path: Path) -> None:
    results = Results(tmp_path / "CartPole-v1.csv", COLUMNS, KEY)
    for seed in (0, 1):
        results.add(a_row(seed=seed, mean_reward=1 / 3))
    results.add(a_row(seed=0, mean_reward=2 / 3))
    assert table(tmp_path).mean_reward.to_list() == [2 / 3, 1 / 3]
    assert results.done() == {("ppo", "n_envs:1", 0), ("ppo", "n_envs:1", 1)}


def test_the_notes_say_what_made_the_results(tmp_path: Path) -> None:
    results = Results(tmp_path / "CartPole-v1.csv", COLUMNS, KEY)
    note_protocol(results, {"budget": 10})
    results.add(a_row())
    note_protocol(results, {"budget": 10})
    notes = json.loads((tmp_path / "CartPole-v1.json").read_text())
    assert notes["budget"] == 10
    assert len(notes["made_with"]) == 1
    assert {"torch", "stable_baselines3", "machine"} <= set(notes["made_with"][0])


@pytest.mark.parametrize("preset", [*PRESETS.values(), Preset()])
def test_presets_suit_every_algorithm(preset: Preset) -> None:
    for update_size in preset.update_sizes:
        assert preset.budget >= update_size
        for algorithm in ALGORITHMS:
            assert make_variant(algorithm, preset, update_size, preset.batch_sizes[0]).update_size == update_size
