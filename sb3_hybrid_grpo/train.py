"""The ``train`` command: train HybridGRPO on one env, evaluate the policy, save everything in a numbered folder."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.cli import (
    CommandError,
    next_run_folder,
    replacing,
    require_modules,
    versions,
    write_text,
)
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.evaluation import Evaluation, RandomPolicy, default_policy, evaluate, make_env, normalized_like
from sb3_hybrid_grpo.learning_curve import save_learning_curve
from sb3_hybrid_grpo.train_arguments import add_arguments, parse_hyperparams, with_schedules

__all__ = ["add_arguments", "run"]

# The same for every env; everything else is HybridGRPO's default. 4 envs x 128 steps x 4 samples is 2048 samples an update.
DEFAULT_HYPERPARAMS: dict[str, Any] = {"n_steps": 128}
# Evaluation and the random policy see seeds that training (seed, seed + 1, ... one per env) does not reach.
EVALUATION_SEED_OFFSET = 1_000_000
RANDOM_SEED_OFFSET = 2_000_000


class EpisodeLog(BaseCallback):
    """
    Writes a row for each episode that ends, in SB3's monitor format plus the step counts, as it happens.

    :param path: The CSV to write.
    :param env_id: The env's id, for the header.
    """

    def __init__(self, path: Path, env_id: str) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.rewards: list[float] = []
        self._writer = ResultsWriter(
            str(path), {"t_start": time.time(), "env_id": env_id}, extra_keys=("timesteps", "simulator_steps")
        )

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                assert isinstance(self.model, HybridGRPO)
                steps = self.model.num_timesteps
                episode = {key: info["episode"][key] for key in ("r", "l", "t")}
                self._writer.write_row({**episode, "timesteps": self.num_timesteps, "simulator_steps": steps})
                self.steps.append(steps)
                self.rewards.append(float(episode["r"]))
        return True

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def build_model(options: argparse.Namespace, hyperparams: dict[str, Any]) -> HybridGRPO:
    """
    Build the envs and the model.

    :param options: The command's options.
    :param hyperparams: Arguments of HybridGRPO as typed.
    :return: The model, ready to learn.
    """
    arguments = with_schedules({**DEFAULT_HYPERPARAMS, **hyperparams})
    env = make_env(options.env, options.n_envs, options.seed)
    if options.normalize:
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99))
    policy = arguments.pop("policy", default_policy(env.observation_space))
    if policy != "CnnPolicy":
        # Small networks gain nothing from a second thread, and lose a factor of ten where other processes use the cores.
        th.set_num_threads(1)
    try:
        return HybridGRPO(policy, env, seed=options.seed, verbose=1, **arguments)
    except (BranchingError, ValueError, TypeError, AssertionError, NotImplementedError) as error:  # the last two are SB3's
        env.close()
        raise CommandError(f"HybridGRPO cannot train on {options.env} with these hyperparameters: {error}") from error


def learn(model: HybridGRPO, timesteps: int, log: EpisodeLog) -> bool:
    """
    Train with a progress bar; Ctrl-C ends the training and leaves a usable model.

    :param model: The model.
    :param timesteps: Executed steps.
    :param log: The log of the episodes; closed at the end.
    :return: Whether the training ran to its end.
    """
    progress = ProgressBarCallback()
    try:
        model.learn(timesteps, callback=CallbackList([log, progress]))
    except KeyboardInterrupt:
        return False
    finally:
        # SB3 closes the bar only after a training that ran to its end; an open one garbles the terminal.
        bar = getattr(progress, "pbar", None)
        if bar is not None:
            bar.close()
        log.close()
    return True


def evaluate_model(model: HybridGRPO, options: argparse.Namespace) -> tuple[Evaluation, Evaluation]:
    """
    Evaluate the trained policy and a random one, in fresh envs.

    :param model: The trained model.
    :param options: The command's options.
    :return: The policy's evaluation and the random policy's.
    """
    n_envs = min(4, options.eval_episodes)
    env = normalized_like(model, make_env(options.env, n_envs, options.seed + EVALUATION_SEED_OFFSET))
    seed = options.seed + RANDOM_SEED_OFFSET
    random_env = make_env(options.env, n_envs, seed)
    random_policy = RandomPolicy(random_env, seed)
    return evaluate(model, env, options.eval_episodes), evaluate(random_policy, random_env, options.eval_episodes)


def save_training(model: HybridGRPO, folder: Path) -> dict[str, Path]:
    """
    Save what is needed to use the policy or to go on training.

    :param model: The model.
    :param folder: The run's folder.
    :return: The path of each file, by what it is.
    """
    paths = {"model": folder / "model.zip"}
    model.save(paths["model"])
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        paths["normalisation"] = folder / "vecnormalize.pkl"
        with replacing(paths["normalisation"]) as temporary:
            normalize.save(str(temporary))
    return paths


def run(options: argparse.Namespace) -> int:
    """
    Train, evaluate, save.

    :param options: The command's options.
    :return: The exit code: 0, or 130 after Ctrl-C.
    """
    require_modules(("tqdm", "rich", "matplotlib"), extra="extra")
    hyperparams = parse_hyperparams(options.hyperparams)
    model = build_model(options, hyperparams)
    folder = next_run_folder(options.output_dir, options.env)
    log = EpisodeLog(folder / "monitor.csv", options.env)
    start = time.perf_counter()
    finished = learn(model, options.timesteps, log)
    seconds = time.perf_counter() - start
    paths = save_training(model, folder) | {
        "episodes": folder / "monitor.csv",
        "learning curve": folder / "learning_curve.png",
    }
    title = f"HybridGRPO on {options.env}"
    if not finished:
        save_learning_curve(paths["learning curve"], log.steps, log.rewards, f"{title} (interrupted)")
        print("\nInterrupted: the model is saved as far as it was trained; the evaluation is left out.")
        print_paths(paths)
        return 130
    print(f"Evaluating {options.eval_episodes} episodes ...")
    policy, random_policy = evaluate_model(model, options)
    save_learning_curve(paths["learning curve"], log.steps, log.rewards, title, float(np.mean(random_policy.rewards)))
    paths["evaluation"] = folder / "evaluation.json"
    report = {
        "env": options.env,
        "settings": settings(options, hyperparams),
        "executed_steps": model.num_timesteps,
        "simulator_steps": model.num_timesteps,
        "training_seconds": round(seconds, 1),
        "policy": policy.as_dict(),
        "random_policy": random_policy.as_dict(),
        "versions": versions(),
    }
    write_text(paths["evaluation"], json.dumps(report, indent=2) + "\n")
    print_paths(paths)
    print(f"Trained {model.num_timesteps:,} executed steps ({model.num_timesteps:,} simulator steps) in {seconds:.0f} s.")
    print(f"Mean reward of {options.eval_episodes} episodes: {policy}   (random policy: {random_policy})")
    return 0


def settings(options: argparse.Namespace, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Name everything that the user can set, with the values of this run.

    :param options: The command's options.
    :param hyperparams: Arguments of HybridGRPO as typed.
    :return: The settings, for JSON.
    """
    names = ("timesteps", "n_envs", "seed", "normalize")
    return {name: getattr(options, name) for name in names} | {"hyperparams": {**DEFAULT_HYPERPARAMS, **hyperparams}}


def print_paths(paths: dict[str, Path]) -> None:
    """
    Print where each file lies.

    :param paths: The path of each file, by what it is.
    """
    print("Saved:")
    for name, path in paths.items():
        print(f"  {name:<14} {path}")
