"""HybridGRPO beside PPO in the Zoo: runs are done once and completely, and reported; no test looks at who is better."""

import json
from pathlib import Path

import pandas as pd
import pytest

from sb3_hybrid_grpo.__main__ import run_command
from sb3_hybrid_grpo.benchmark.results import Results
from sb3_hybrid_grpo.benchmark.zoo import CURVES, KEY, SCORES, Run, scores_table, train_arguments, verdict
from tests.zoo import command, zoo_in


def main(arguments: list[str]) -> int:
    return run_command("sb3_hybrid_grpo.benchmark.zoo", "zoo", arguments)


def test_evaluations_are_spread_over_the_training() -> None:
    pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
    for hyperparams, every in (((), "5000"), (("n_timesteps:400",), "20")):
        arguments = train_arguments(Run("CartPole-v1", "ppo", 3), hyperparams)
        assert arguments[arguments.index("--eval-freq") + 1] == every


def test_runs_are_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_in(tmp_path):
        runs = ["--output", "results", "--logs", "agents", "--envs", "CartPole-v1", "--seeds", "7"]
        short = ["-params", "n_timesteps:400", "n_envs:1", "n_steps:100", "n_epochs:1", "learning_rate:0"]
        assert main([*runs, *short, "--algos", "hybrid_grpo"]) == 0
        assert main([*runs, *short]) == 0
        printed = capsys.readouterr().out
        assert printed.count("hybrid_grpo 7") == 1
        assert printed.count("ppo 7") == 1
        rows = Results(Path("results/scores.csv"), SCORES, KEY).frame.set_index("algo")
        assert rows.simulator_steps.to_dict() == {"ppo": 400, "hybrid_grpo": 400}
        assert rows.executed_steps["ppo"] == 400
        made = json.loads(Path("results/runs.json").read_text(encoding="utf-8"))["CartPole-v1 ppo 7"]
        assert made["command"].startswith("hybrid-grpo-zoo train --algo ppo --env CartPole-v1 --seed 7")
        assert made["made_with"]["machine"]
        assert Results(Path("results/curves.csv"), CURVES, KEY).frame.simulator_steps.iloc[-1] == 400
        assert Path("results/curves.png").is_file()
        assert not list(Path("agents/unfinished").iterdir())
        for algo in rows.index:
            command("enjoy", "--algo", algo, "--env", "CartPole-v1", "-f", "agents/seed_7", "--no-render", "-n", 10)


def test_a_training_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_in(tmp_path):
        with pytest.raises(SystemExit):
            main("--output results --logs agents --envs CartPole-v1 --seeds 0 --algos ppo -params n_steps:-1".split())
        assert "train.log" in capsys.readouterr().err
        assert not list(Path("results").iterdir())


def test_an_env_without_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_in(tmp_path):
        with pytest.raises(SystemExit):
            main("--output results --logs agents --envs Blackjack-v1 --algos ppo".split())
        assert "Blackjack-v1" in capsys.readouterr().err


def test_verdicts() -> None:
    assert verdict([10.0, 11.0, 12.0], [1.0, 2.0, 3.0]) == "better"
    assert verdict([1.0, 2.0, 3.0], [10.0, 11.0, 12.0]) == "worse"
    assert verdict([1.0, 2.0, 9.0], [3.0, 4.0, 5.0]) == "not separated"
    assert verdict([1.0], [3.0, 4.0]) == verdict([], [1.0, 2.0]) == ""


def test_table() -> None:
    rewards = {"hybrid_grpo": (-100.0, -104.0), "ppo": (-200.0, -202.0)}
    scores = [
        ("Pendulum-v1", algo, seed, 400, 100, 2.0, 1.0, reward, 3.0, 100)
        for algo, of_algo in rewards.items()
        for seed, reward in enumerate(of_algo)
    ]
    lines = scores_table(pd.DataFrame(scores, columns=list(SCORES))).splitlines()[2:]
    ppo, ours = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert ppo == ["Pendulum-v1", "400", "PPO", "-200.0, -202.0", "-201.0 ± 1.0", "", "1 s"]
    assert ours == ["Pendulum-v1", "400", "HybridGRPO", "-100.0, -104.0", "-102.0 ± 2.0", "better", "1 s"]
