"""HybridGRPO beside PPO in the Zoo: runs are done once and completely, and reported; no test looks at who is better."""

import csv
import json
from pathlib import Path

import pytest

import sb3_hybrid_grpo
from sb3_hybrid_grpo.benchmark.zoo import Run, main, train_arguments
from sb3_hybrid_grpo.benchmark.zoo_report import Score, ZooResults, save_report, table, verdict
from tests.zoo import command, zoo_in

ROOT = Path(sb3_hybrid_grpo.__file__).parents[1]


def score(algo: str, seed: int, reward: float) -> Score:
    return Score("Pendulum-v1", algo, seed, 400, 100, 2.0, 1.0, reward, 3.0, 100)


def test_evaluations_are_spread_over_the_training() -> None:
    pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
    for hyperparams, every in (((), "1250"), (("n_timesteps:400",), "20")):
        arguments = train_arguments(Run("hybrid_grpo", "CartPole-v1", 3), hyperparams)
        assert arguments[arguments.index("--eval-freq") + 1] == every


def test_runs_are_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zoo_in(tmp_path):
        runs = ["--output", "results", "--logs", "agents", "--envs", "CartPole-v1", "--seeds", "7"]
        short = ["-params", "n_timesteps:400", "n_envs:1", "n_steps:100", "n_epochs:1", "learning_rate:0"]
        assert main([*runs, *short, "--algos", "hybrid_grpo"]) == 0
        assert main([*runs, *short]) == 0
        printed = capsys.readouterr().out
        assert printed.count("hybrid_grpo seed 7") == 1
        assert printed.count("ppo seed 7") == 1
        with Path("results/scores.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["algo"]: row for row in csv.DictReader(file)}
        assert (rows["ppo"]["executed_steps"], rows["ppo"]["simulator_steps"]) == ("400", "400")
        assert (rows["hybrid_grpo"]["executed_steps"], rows["hybrid_grpo"]["simulator_steps"]) == ("400", "1600")
        made = json.loads(Path("results/runs.json").read_text(encoding="utf-8"))["CartPole-v1 ppo 7"]
        assert made["command"].startswith("hybrid-grpo-zoo train --algo ppo --env CartPole-v1 --seed 7")
        assert made["made_with"]["machine"]
        assert [line.simulator_steps for line in ZooResults(Path("results")).curves][-1] == 400
        assert Path("results/curves.png").is_file()
        assert not list(Path("agents/unfinished").iterdir())
        for algo in rows:
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


def test_table(tmp_path: Path) -> None:
    results = ZooResults(tmp_path)
    save_report(results)
    assert not list(tmp_path.iterdir())
    for algo, rewards in (("hybrid_grpo", (-100.0, -104.0)), ("ppo", (-200.0, -202.0))):
        for seed, reward in enumerate(rewards):
            results.add(score(algo, seed, reward), [], {})
    ppo, ours = table(results).splitlines()[2:]
    assert ppo == "| Pendulum-v1 | 400 | PPO | -200.0, -202.0 | -201.0 ± 1.0 |  | 1 s |"
    assert ours == "| Pendulum-v1 | 400 | HybridGRPO | -100.0, -104.0 | -102.0 ± 2.0 | better | 1 s |"


def test_the_docs_show_the_committed_results() -> None:
    folder = ROOT / "benchmarks" / "zoo"
    if not folder.is_dir():
        pytest.skip("runs without the benchmarks")
    shown = table(ZooResults(folder))
    for page in (folder / "README.md", ROOT / "docs" / "hybrid_grpo.md"):
        assert shown in page.read_text(encoding="utf-8"), page
