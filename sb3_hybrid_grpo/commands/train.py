"""Train HybridGRPO on one env, evaluate it, and save the policy so that the Zoo's enjoy finds it."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.utils import get_latest_run_id
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, positive_int, seed_int, with_schedules
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules, versions, write_text
from sb3_hybrid_grpo.commands.evaluation import default_policy, make_env, normalized_like
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.zoo import ALGORITHM

# The same for all envs; all other arguments have HybridGRPO's defaults. 4 envs x 512 samples is 2048 samples an update.
DEFAULT_HYPERPARAMS: dict[str, Any] = {"n_steps": 512}
EVALUATION_SEED = 1_000_000  # added to the training's seed; the training's envs have seed, seed + 1, ...


class EpisodeLog(BaseCallback):
    """Writes a row for each episode of an executed member, in SB3's monitor format plus the step counts, as it happens."""

    def __init__(self, path: Path, env_id: str) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.rewards: list[float] = []
        header: dict[str, Any] = {"t_start": time.time(), "env_id": env_id}
        self._writer = ResultsWriter(str(path), header, extra_keys=("simulator_steps", "executed_steps"))

    def _on_step(self) -> bool:
        model: Any = self.model
        for info in self.locals["infos"]:
            if "episode" in info:
                counts = {"simulator_steps": self.num_timesteps, "executed_steps": model.num_executed_steps}
                self._writer.write_row({key: info["episode"][key] for key in ("r", "l", "t")} | counts)
                self.steps.append(self.num_timesteps)
                self.rewards.append(float(info["episode"]["r"]))
        return True

    def _on_training_end(self) -> None:
        self._writer.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--env", required=True, help="id of a gymnasium env, for example CartPole-v1 or module:Env-v0")
    counts: dict[str, Any] = {"type": positive_int}
    parser.add_argument(
        "--timesteps", default=100_000, help="simulator steps, as total_timesteps (default: %(default)s)", **counts
    )
    parser.add_argument("--n-envs", default=4, help="envs that run side by side (default: %(default)s)", **counts)
    parser.add_argument("--seed", type=seed_int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--normalize", action="store_true", help="normalise observations and rewards (VecNormalize)")
    text = "arguments of HybridGRPO, for example gamma:0.9 n_samples:8 branch_horizon:16 learning_rate:lin_1e-3"
    parser.add_argument("--hyperparams", nargs="+", action="extend", default=[], metavar="key:value", help=text)
    parser.add_argument("--output-dir", type=Path, default=Path("logs"), help="folder of all runs (default: %(default)s)")
    parser.add_argument("--eval-episodes", default=20, help="episodes of the evaluation (default: %(default)s)", **counts)


def run(options: argparse.Namespace) -> int:
    """Train, evaluate, save; the exit code is 130 after Ctrl-C."""
    require_modules(("tqdm", "rich", "matplotlib"), extra="extra")
    hyperparams = {**DEFAULT_HYPERPARAMS, **parse_hyperparams(options.hyperparams)}
    model = build_model(options, hyperparams)
    name = options.env.rpartition(":")[2].replace("/", "-")
    folder = new_run_folder(options.output_dir, name)
    log = EpisodeLog(folder / "monitor.csv", options.env)
    start = time.perf_counter()
    finished = learn(model, options.timesteps, log)
    seconds = time.perf_counter() - start
    model.save(folder / f"{name}.zip")
    save_for_zoo(model, output_folder(folder / name), {"n_envs": options.n_envs, **hyperparams})
    title = f"HybridGRPO on {name}"
    if finished:
        print(f"Evaluating {options.eval_episodes} episodes ...")
        env = make_env(options.env, min(4, options.eval_episodes), options.seed + EVALUATION_SEED)
        found, _ = evaluate_policy(model, normalized_like(model, env), options.eval_episodes, return_episode_rewards=True)
        rewards = [float(one) for one in np.asarray(found)]
        env.close()
        mean, std = float(np.mean(rewards)), float(np.std(rewards))
        print(f"Mean reward of {options.eval_episodes} episodes: {mean:.1f} ± {std:.1f}")
        print("Above, ep_rew_mean is the mean of the last 100 training episodes: it lags, and includes exploration.")
        settings = {key: getattr(options, key) for key in ("timesteps", "n_envs", "seed", "normalize")}
        made: dict[str, Any] = {"env": options.env, "settings": {**settings, "hyperparams": hyperparams}}
        made |= {"simulator_steps": model.num_timesteps, "executed_steps": model.num_executed_steps}
        made |= {"training_seconds": round(seconds, 1), "mean_reward": mean, "std_reward": std, "rewards": rewards}
        write_text(folder / "evaluation.json", json.dumps(made | {"versions": versions()}, indent=2) + "\n")
    else:
        print("\nInterrupted: the model is saved as far as it was trained; the evaluation is left out.")
        title += " (interrupted)"
    save_learning_curve(folder / "learning_curve.png", log.steps, log.rewards, title)
    print(f"Trained {model.num_timesteps:,} simulator steps ({model.num_executed_steps:,} executed) in {seconds:.0f} s.")
    print("Saved:", *sorted(path for path in folder.rglob("*") if path.is_file()), sep="\n  ")
    print(f"Watch it play (extra zoo): hybrid-grpo-zoo enjoy --env {options.env.rpartition(':')[2]} -f {options.output_dir}")
    return 0 if finished else 130


def build_model(options: argparse.Namespace, hyperparams: dict[str, Any]) -> HybridGRPO:
    """Build the envs and the model; CommandError if they do not suit each other."""
    arguments = with_schedules(hyperparams)
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


def new_run_folder(parent: Path, name: str) -> Path:
    """Make ``parent/hybrid_grpo/name_1``, or the next number that no run has, as the Zoo does."""
    runs = output_folder(parent / ALGORITHM)
    while True:
        folder = runs / f"{name}_{get_latest_run_id(str(runs), name) + 1}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run made it in the meantime
            continue
        return folder


def learn(model: HybridGRPO, timesteps: int, log: EpisodeLog) -> bool:
    """Train with a progress bar; False if Ctrl-C ended it, which leaves a usable model."""
    callbacks = CallbackList([log, ProgressBarCallback()])
    try:
        model.learn(timesteps, callbacks)
    except KeyboardInterrupt:
        callbacks.on_training_end()  # an open bar garbles the terminal
        return False
    return True


def save_for_zoo(model: HybridGRPO, folder: Path, hyperparams: dict[str, Any]) -> None:
    """Save the files that the Zoo's ``enjoy`` reads besides the model's."""
    normalize = model.get_vec_normalize_env()
    # JSON is valid YAML
    write_text(folder / "config.yml", json.dumps({**hyperparams, "normalize": normalize is not None}, indent=2) + "\n")
    if normalize is not None:
        normalize.save(str(folder / "vecnormalize.pkl"))


def save_learning_curve(path: Path, steps: Sequence[int], rewards: Sequence[float], title: str) -> None:
    """
    Save a PNG of episode rewards against simulator steps: every episode faint, their moving mean on top.

    :param path: The PNG to write.
    :param steps: Simulator steps, siblings included, at each episode's end; ascending.
    :param rewards: Undiscounted raw reward of each episode.
    :param title: Title of the plot.
    """
    # The object interface, not pyplot: no global state, and no display is needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.plot(steps, rewards, ".", markersize=4, alpha=0.25, color="#0072B2", label="one episode")
    window = min(50, max(5, len(rewards) // 10))
    last = np.flatnonzero(np.diff(steps, append=np.inf))  # of episodes that end at the same step, only the last has a mean
    means = [np.mean(rewards[max(end - window, 0) : end]) for end in (last + 1).tolist()]
    axes.plot(np.array(steps)[last], means, color="#0072B2", linewidth=2, label=f"mean of the last {window}")
    axes.set(title=title, xlabel="simulator steps", ylabel="episode reward while training")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path)
