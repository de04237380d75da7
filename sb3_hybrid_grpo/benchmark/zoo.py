"""
HybridGRPO beside PPO in RL Baselines3 Zoo, with the Zoo's entries, at equal simulator steps. Every run is a ``train`` of the
launcher in its own process; then the final agent plays. Runs that are in the results are not made again.
"""

import argparse
import math
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
import pandas as pd
import torch as th
import yaml
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.__main__ import run_command
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.plots import NAMES, save_zoo
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, stamp, write_notes
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules, write_text
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file, register

ENVS = {"CartPole-v1": 5, "Pendulum-v1": 5, "MountainCarContinuous-v0": 3, "Acrobot-v1": 3, "LunarLander-v3": 3}  # seeds
EVALUATIONS, EPISODES = 20, 100
PLAY_SEED = 1_000_000  # trainings and their evaluations have seeds far below it
STANDARD_ERRORS = 2.0  # larger differences are called better or worse
KEY = ("env", "algo", "seed")
RUN: dict[str, type] = {"env": str, "algo": str, "seed": int, "simulator_steps": int}
CURVES = {**RUN, "mean_reward": float}
SECONDS = {"wall_seconds": float, "cpu_seconds": float}
SCORES = {**RUN, "executed_steps": int, **SECONDS, "mean_reward": float, "std_reward": float, "episodes": int}
PAGE = """\
# HybridGRPO and PPO in RL Baselines3 Zoo

Each trained by `hybrid-grpo-zoo train` with its entry (0.1 had one of its own), at equal **simulator** steps; then the final
agent played {episodes} episodes, deterministically, with seeds that training did not use. Shown are the mean reward of each
seed's agent, and their mean ± standard error. CPU time is that of one training in one thread, its evaluations included.
*Worse* and *better* are differences of more than {errors:g} standard errors of the difference.

{table}

![learning curves](curves.png)

The Zoo's evaluations during training (5 episodes each): a thin line per seed, a thick one for their mean. Made by
`python -m sb3_hybrid_grpo.benchmark.zoo` with {made_with}; each run's command and hyperparameters are in
[`runs.json`](runs.json).
"""


class Run(NamedTuple):
    """One training, with a value of ``--algo``."""

    env: str
    algo: str
    seed: int


def entry(run: Run) -> dict[str, Any]:
    """The hyperparameters that the launcher will use; CommandError if it has none for the env."""
    import rl_zoo3

    name = "ppo" if run.algo == ALGORITHM else run.algo
    paths = [Path(rl_zoo3.__file__).parent / "hyperparams" / f"{name}.yml"]
    paths += [config_file()] if run.algo == ALGORITHM else []
    entries = {key: one for path in paths for key, one in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    if run.env not in entries:
        raise CommandError(f"received {run.env}, which has no entry; choose one of {', '.join(entries)}")
    return dict(entries[run.env])


def train_arguments(run: Run, hyperparams: Sequence[str]) -> list[str]:
    """The command line of a training without ``hybrid-grpo-zoo``; ``hyperparams`` win over the entry, as after ``-params``."""
    steps = {**entry(run), **dict(one.split(":", 1) for one in hyperparams)}["n_timesteps"]
    arguments = ["train", "--algo", run.algo, "--env", run.env, "--seed", run.seed]
    arguments += ["--eval-freq", int(float(steps)) // EVALUATIONS, "--device", "cpu", "-f", f"seed_{run.seed}"]
    return [str(one) for one in (*arguments, *(["-params", *hyperparams] if hyperparams else []))]


def train(folder: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Train with the launcher, in a folder and in one thread; return wall and CPU seconds. CommandError if it fails."""
    command = [sys.executable, "-m", "sb3_hybrid_grpo.zoo", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "train.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise CommandError(f"hybrid-grpo-zoo {' '.join(arguments)} ended with code {code}; see {folder / 'train.log'}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def do(run: Run, logs: Path, hyperparams: Sequence[str], folder: Path) -> dict[str, Any]:
    """
    Train, with ``hyperparams`` in place of the entry's, let the final agent play as ``enjoy`` would, and keep agent and score.
    The score is returned. It is written last, because a run with a score counts as done.
    """
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams

    name = " ".join(map(str, run))
    unfinished = logs / "unfinished" / name.replace(" ", "-")
    shutil.rmtree(unfinished, ignore_errors=True)
    arguments = train_arguments(run, hyperparams)
    seconds = train(output_folder(unfinished), arguments)
    (trained,) = unfinished.glob(f"seed_{run.seed}/{run.algo}/{run.env}_1")
    settings, statistics = get_saved_hyperparams(str(trained / run.env), norm_reward=False, test_mode=True)
    shown: dict[str, Any] = {"seed": PLAY_SEED, "should_render": False, "vec_env_cls": DummyVecEnv}
    env = create_test_env(run.env, 10, statistics, hyperparams=settings, **shown)
    model = ALGOS[run.algo].load(trained / f"{run.env}.zip", device="cpu")
    mean_and_std: Any = evaluate_policy(model, env, EPISODES)
    env.close()
    saved = np.load(trained / "evaluations.npz")
    curve = pd.DataFrame({"simulator_steps": saved["timesteps"], "mean_reward": saved["results"].mean(axis=1)})
    counts = (model.num_timesteps, getattr(model, "num_executed_steps", model.num_timesteps))
    found = (*run, *counts, *(round(one, 1) for one in seconds), *map(float, mean_and_std), EPISODES)
    score = dict(zip(SCORES, found, strict=True))
    kept = logs / trained.relative_to(unfinished)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copy(unfinished / "train.log", trained)
    shutil.move(trained, output_folder(kept.parent))
    shutil.rmtree(unfinished)
    made = {"command": " ".join(["hybrid-grpo-zoo", *arguments]), "hyperparams": entry(run), "made_with": stamp()}
    write_notes(folder / "runs.json", {**read_notes(folder / "runs.json"), name: made})
    Results(folder / "curves.csv", CURVES, KEY).add(curve.assign(**run._asdict()))
    Results(folder / "scores.csv", SCORES, KEY).add(pd.DataFrame([score]))
    return score


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Say whether scores, one per seed, are better or worse by more than noise; nothing for a single seed."""
    noise = STANDARD_ERRORS * math.hypot(*(float(pd.Series(one).sem()) for one in (ours, theirs)))
    if math.isnan(noise):
        return ""
    difference = float(np.mean(ours) - np.mean(theirs))
    return "not separated" if abs(difference) <= noise else "better" if difference > 0 else "worse"


def scores_table(scores: pd.DataFrame) -> str:
    """Write the table of scores."""
    cells, theirs = [], scores[scores.algo == "ppo"].groupby("env").mean_reward.apply(list)
    ordered = scores.sort_values("seed", kind="stable").groupby(["env", "algo"])
    for env, algo in ((env, algo) for env in dict.fromkeys(scores.env) for algo in ("ppo", ALGORITHM)):
        if (env, algo) in ordered.groups:
            own = ordered.get_group((env, algo))
            means = own.mean_reward.to_list()
            against = verdict(means, theirs.get(env, [])) if algo == ALGORITHM else ""
            each, mean = ", ".join(f"{one:.1f}" for one in means), f"{np.mean(means):.1f} ± {own.mean_reward.sem():.1f}"
            steps, seconds = f"{own.simulator_steps.iloc[0]:,}", f"{own.cpu_seconds.mean():.0f} s"
            cells.append([env, steps, NAMES[algo], each, mean, against, seconds])
    return table(["env", "simulator steps", "algorithm", "each seed", "mean ± s.e.", "against PPO", "CPU time"], cells)


def save_report(folder: Path) -> None:
    """Write ``README.md`` and ``curves.png``, if there is a score."""
    scores = Results(folder / "scores.csv", SCORES, KEY).frame
    if len(scores):
        save_zoo(folder / "curves.png", Results(folder / "curves.csv", CURVES, KEY).frame)
        used = "; ".join(dict.fromkeys(plain(one["made_with"]) for one in read_notes(folder / "runs.json").values()))
        numbers = {"episodes": scores.episodes[0], "errors": STANDARD_ERRORS}
        write_text(folder / "README.md", PAGE.format(table=scores_table(scores), made_with=used, **numbers))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    several: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the trained agents, for enjoy -f LOGS/seed_0")
    parser.add_argument("--envs", default=list(ENVS), metavar="ENV_ID", help="which envs (default: %(default)s)", **several)
    parser.add_argument("--algos", default=["ppo", ALGORITHM], metavar="ALGO", help="default: %(default)s", **several)
    parser.add_argument("--seeds", type=int, metavar="SEED", help="3 or 5 by default", **several)
    parser.add_argument("-params", "--hyperparams", default=[], help="instead of what the entries say, to try", **several)
    parser.add_argument("--report-only", action="store_true", help="do not run anything")


def run(options: argparse.Namespace) -> int:
    """Make the missing runs, then write the report; the exit code is 0."""
    require_modules(("rl_zoo3", "tabulate"), extra="zoo")
    register()
    th.set_num_threads(1)
    folder = output_folder(options.output)
    done = Results(folder / "scores.csv", SCORES, KEY).done()
    seeds = {env: options.seeds or range(ENVS.get(env, 3)) for env in options.envs}
    wanted = [Run(env, algo, seed) for algo in options.algos for env in options.envs for seed in seeds[env]]
    missing = [] if options.report_only else [one for one in wanted if one not in done]
    for number, one in enumerate(missing, start=1):
        score = do(one, options.logs.resolve(), options.hyperparams, folder)["mean_reward"]
        print(f"{time.strftime('%H:%M:%S')} {number} of {len(missing)}: {' '.join(map(str, one))}: {score:.1f}", flush=True)
    save_report(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("sb3_hybrid_grpo.benchmark.zoo", "python -m sb3_hybrid_grpo.benchmark.zoo", sys.argv[1:]))
