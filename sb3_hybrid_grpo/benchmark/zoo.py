"""
HybridGRPO beside PPO in RL Baselines3 Zoo, each with its own entry, at equal simulator steps:

``python -m sb3_hybrid_grpo.benchmark.zoo --output benchmarks/zoo --logs zoo_logs``

Every run is one ``train`` of the launcher in a process of its own; then the final agent plays. A run that is in the results is
not done again, and one that is stopped leaves nothing in them: the same command again goes on.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
import yaml
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_hybrid_grpo
from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.benchmark.zoo_report import Evaluation, Score, ZooResults, save_report
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules, versions
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file, register

# Seeds by env, from the cheapest to the dearest
ENVS = {"CartPole-v1": 5, "Pendulum-v1": 5, "MountainCarContinuous-v0": 3, "Acrobot-v1": 3, "LunarLander-v3": 3}
EVALUATIONS = 20
EPISODES = 100
# Trainings and their evaluations have seeds that are far below it
PLAY_SEED = 1_000_000


class Run(NamedTuple):
    """
    One training.

    :param algo: What ``--algo`` is.
    :param env: The env's id.
    :param seed: Its seed.
    """

    algo: str
    env: str
    seed: int

    def __str__(self) -> str:
        return f"{self.env} {self.algo} seed {self.seed}"


def entry(run: Run) -> dict[str, Any]:
    """
    Find the hyperparameters that the launcher will use.

    :param run: The run.
    :return: The entry of its env.
    """
    import rl_zoo3

    zoo = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{run.algo}.yml"
    path = config_file() if run.algo == ALGORITHM else zoo
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if run.env not in entries:
        raise CommandError(f"received {run.env}, which {path} has no entry for; choose one of {', '.join(entries)}")
    return dict(entries[run.env])


def train_arguments(run: Run, hyperparams: Sequence[str]) -> list[str]:
    """
    Write the command line of a training.

    :param run: The run.
    :param hyperparams: Instead of what the entry says, as behind ``-params``.
    :return: What follows ``hybrid-grpo-zoo``.
    """
    steps = {**entry(run), **dict(one.split(":", 1) for one in hyperparams)}["n_timesteps"]
    every = int(float(steps)) // EVALUATIONS
    arguments = ["train", "--algo", run.algo, "--env", run.env, "--seed", run.seed, "--eval-freq", every]
    overriding = ["-params", *hyperparams] if hyperparams else []
    return [str(one) for one in (*arguments, "--device", "cpu", "-f", f"seed_{run.seed}", *overriding)]


def train(folder: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """
    Train, in one thread.

    :param folder: Where the launcher runs; ``train.log`` is written there.
    :param arguments: Of the launcher.
    :return: Seconds of wall time and of CPU time.
    :raises CommandError: if the training fails.
    """
    # this package, wherever it comes from
    paths = [str(Path(sb3_hybrid_grpo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "sb3_hybrid_grpo.zoo", *arguments]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "train.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise CommandError(f"hybrid-grpo-zoo {' '.join(arguments)} ended with code {code}; see {folder / 'train.log'}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def play(run: Run, trained: Path) -> tuple[Any, list[float]]:
    """
    Let the final agent play as ``enjoy`` would, deterministically.

    :param run: The run.
    :param trained: The folder that the launcher made for it.
    :return: The agent, and the reward of each of its ``EPISODES``.
    """
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams

    hyperparams, statistics = get_saved_hyperparams(str(trained / run.env), norm_reward=False, test_mode=True)
    settings: dict[str, Any] = {"seed": PLAY_SEED, "should_render": False, "vec_env_cls": DummyVecEnv}
    env = create_test_env(run.env, 10, statistics, hyperparams=hyperparams, **settings)
    model = ALGOS[run.algo].load(trained / f"{run.env}.zip", device="cpu")
    rewards, _ = evaluate_policy(model, env, n_eval_episodes=EPISODES, deterministic=True, return_episode_rewards=True)
    env.close()
    assert isinstance(rewards, list)
    return model, rewards


def evaluations(run: Run, trained: Path, samples_per_step: float) -> list[Evaluation]:
    """
    Read the learning curve.

    :param run: The run.
    :param trained: The folder that the launcher made for it.
    :param samples_per_step: Simulator steps of an executed step.
    :return: What it was during training.
    """
    saved = np.load(trained / "evaluations.npz")
    pairs = zip(saved["timesteps"], saved["results"].mean(axis=1), strict=True)
    return [Evaluation(run.env, run.algo, run.seed, round(n * samples_per_step), float(reward)) for n, reward in pairs]


def do(run: Run, logs: Path, hyperparams: Sequence[str], results: ZooResults) -> Score:
    """
    Train, play, and add both to the results.

    :param run: The run.
    :param logs: Where trained agents are kept.
    :param hyperparams: Instead of what the entry says.
    :param results: Where it is added.
    :return: How it did.
    """
    folder = logs / "unfinished" / str(run).replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    arguments = train_arguments(run, hyperparams)
    wall, cpu = train(output_folder(folder), arguments)
    (trained,) = folder.glob(f"seed_{run.seed}/{run.algo}/{run.env}_1")
    model, rewards = play(run, trained)
    executed = model.num_timesteps
    simulator = getattr(model, "num_simulator_steps", executed)
    played = (float(np.mean(rewards)), float(np.std(rewards)), len(rewards))
    score = Score(run.env, run.algo, run.seed, simulator, executed, round(wall, 1), round(cpu, 1), *played)
    curve = evaluations(run, trained, simulator / executed)
    kept = logs / trained.relative_to(folder)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copy(folder / "train.log", trained)
    shutil.move(trained, output_folder(kept.parent))
    shutil.rmtree(folder)
    made = {"hyperparams": entry(run), "made_with": {**versions(), "machine": machine()}}
    results.add(score, curve, {"command": " ".join(["hybrid-grpo-zoo", *arguments]), **made})
    return score


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Do what is missing, then write the report.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.benchmark.zoo", description="HybridGRPO beside PPO in RL Baselines3 Zoo."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the trained agents, for enjoy -f LOGS/seed_0")
    parser.add_argument("--envs", nargs="+", default=list(ENVS), metavar="ENV_ID", help="which envs")
    parser.add_argument("--algos", nargs="+", default=["ppo", ALGORITHM], metavar="ALGO", help="which algorithms")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="3 or 5 by default")
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[], help="instead of what the entries say, to try")
    parser.add_argument("--report-only", action="store_true", help="do not run anything")
    options = parser.parse_args(arguments)
    try:
        require_modules(("rl_zoo3", "yaml", "matplotlib"), extra="zoo")
        register()
        th.set_num_threads(1)
        results = ZooResults(output_folder(options.output))
        runs = [
            Run(algo, env, seed)
            for algo in options.algos
            for env in options.envs
            for seed in options.seeds or range(ENVS.get(env, 3))
        ]
        missing = [] if options.report_only else [run for run in runs if run not in results.done]
        for number, run in enumerate(missing, start=1):
            print(f"{time.strftime('%H:%M:%S')} {number} of {len(missing)}: {run} …", flush=True)
            score = do(run, options.logs.resolve(), options.hyperparams, results)
            print(f"  {score.mean_reward:.1f} ± {score.std_reward:.1f}, {score.wall_seconds:.0f} s", flush=True)
        save_report(results)
    except CommandError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
