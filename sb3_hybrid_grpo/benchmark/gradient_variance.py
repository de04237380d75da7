"""
The ``compare gradient-variance`` command: how much the policy gradient of each estimator varies, and what it is on average.

On each env, SB3's PPO trains a policy. It is frozen before its first update, in the middle and at the end, with its critic
and VecNormalize's statistics, so that no estimator is measured on a policy of its own. Then every estimator gives one
gradient from each of many independent rollouts, all of the same number of simulator steps: PPO in ``n_groups * n_samples``
envs, the others in ``n_groups`` groups. The reference that they are held against is PPO's gradient over many more rollouts.

- **The gradient** is that of ``-mean(A * log π(a|s))`` over the whole rollout, by the parameters of the actor: that of
  the clipped surrogate before the first step of an update.
- **Two kinds of advantages.** ``plain``: as the estimator gives them; the clean one, the estimator alone.
  ``normalised``: mean 0 and standard deviation 1 over the rollout, as training does minibatch by minibatch.
- **Where rollouts start.** Every env is reset and goes on alone for a random number of steps, drawn anew for each env and
  rollout from 0 up to the length of an episode (1000 where no one limits it). So rollouts are independent, envs are at
  random points of their episodes, and PPO's envs and executed members start from one and the same distribution. Siblings
  fork when the rollout starts; in a training they would go on from the one before.
- **The critic** has learned plain rewards. The paper's estimator with tanh would have trained it on f(R): beside the
  critic that all share it is at a disadvantage, and is therefore shown without tanh too.
- **"own trace"** is not an estimator that users can choose. Where a group forks, member 0's trace goes on with its own
  advantage, in place of the mean over all members that start there: it shows what that mean brings, and what it costs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.benchmark.gradient_report import ADVANTAGES, CSV, PAGE, Row, save_report
from sb3_hybrid_grpo.benchmark.gradient_rollouts import ESTIMATORS, GAMMA, HORIZONS, Collector, Frozen, Gradients, Size
from sb3_hybrid_grpo.benchmark.gradient_statistics import Sample, compare
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.evaluation import make_env
from sb3_hybrid_grpo.train_arguments import positive_int, seed_int

DEFAULT_ENVS = ["hybrid_grpo/Inventory-v0", "hybrid_grpo/CartPoleSwingUp-v0"]
TRAINING: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64, "n_epochs": 10, "gamma": GAMMA, "device": "cpu"}
# Gradients are measured on seeds that training (seed, seed + 1, ... one per env) does not reach.
SEED_STEP = 1_000_000
FEWEST_ROLLOUTS = 8


class _Freezer(BaseCallback):
    """Copies the policy before its first update and in the middle of the training."""

    def __init__(self, budget: int, done: Callable[[str], None]) -> None:
        super().__init__()
        self.budget, self.done = budget, done
        self.copies: list[Frozen] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, PPO)
        trained = self.num_timesteps - self.model.n_steps * self.model.n_envs  # this rollout is still to be learned from
        if not self.copies:
            self.copies.append(Frozen.of(self.model, "start", trained))
        elif len(self.copies) == 1 and self.num_timesteps >= self.budget / 2:
            self.copies.append(Frozen.of(self.model, "middle", trained))
        self.done("training")


def train(env_id: str, budget: int, seed: int, size: Size, done: Callable[[str], None]) -> list[Frozen]:
    """
    Train PPO.

    :param env_id: The env's id.
    :param budget: Simulator steps, at least three rollouts.
    :param seed: Seed of the training.
    :param size: Size of a rollout.
    :param done: Called after each rollout.
    :return: The policy at the start, in the middle and at the end.
    """
    env = VecNormalize(make_env(env_id, size.n_groups * size.n_samples, seed), gamma=GAMMA)
    model = PPO("MlpPolicy", env, n_steps=size.n_steps, seed=seed, **TRAINING)
    freezer = _Freezer(budget, done)
    model.learn(budget, callback=freezer)
    env.close()
    return [*freezer.copies, Frozen.of(model, "end", model.num_timesteps)]


def measure(
    env_id: str, frozen: Frozen, seed: int, rollouts: tuple[int, int], size: Size, done: Callable[[str], None]
) -> list[Row]:
    """
    Measure all estimators on one policy.

    :param env_id: The env's id.
    :param frozen: The policy.
    :param seed: Seed of the first kind of rollouts; the others count up in steps of ``SEED_STEP``.
    :param rollouts: How many rollouts each estimator gets, and how many the reference.
    :param size: Size of a rollout.
    :param done: Called after each rollout.
    :return: Two rows an estimator: plain and normalised.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    references: list[Sample] = []
    for number, horizon in enumerate(HORIZONS):
        estimators = [estimator for estimator in ESTIMATORS if estimator.horizon == horizon]
        collector = Collector(env_id, horizon, size, seed + number * SEED_STEP, frozen)
        gathered: list[list[Gradients]] = []
        for _ in range(sum(rollouts) if horizon is None else rollouts[0]):
            collector.collect()
            gathered.append(collector.gradients(estimators))
            done(f"{env_id}, {frozen.stage}")
        collector.env.close()
        if horizon is None:  # the first kind; its first rollouts are PPO's own, which tell what chance does to a ratio of 1
            references = samples_of([one[0] for one in gathered[rollouts[0] :]], rng, size)
        for place, estimator in enumerate(estimators):
            own = [one[place] for one in gathered[: rollouts[0]]]
            beta, removed = (float(np.mean([getattr(one, name) for one in own])) for name in ("beta", "variance_removed"))
            for advantages, sample, reference in zip(ADVANTAGES, samples_of(own, rng, size), references, strict=True):
                rows.append(
                    Row(
                        *(env_id, frozen.stage, frozen.trained_steps, estimator.name, advantages, len(own)),
                        *(size.simulator_steps, compare(sample, reference), estimator.same_units, beta, removed),
                    )
                )
    return rows


def samples_of(gradients: list[Gradients], rng: np.random.Generator, size: Size) -> list[Sample]:
    """
    Put the gradients of one estimator together.

    :param gradients: Of one rollout each.
    :param rng: For the bootstrap.
    :param size: Says how often it draws.
    :return: Plain and normalised.
    """
    parts = [[one.plain for one in gradients], [one.normalised for one in gradients]]
    return [Sample(np.stack(part), rng, size.resamples) for part in parts]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's arguments.

    :param parser: The subcommand's parser.
    """
    parser.add_argument("--env", nargs="+", default=DEFAULT_ENVS, help="ids of gymnasium envs")
    parser.add_argument("--budget", type=positive_int, default=200_000, help="simulator steps of each env's training")
    parser.add_argument("--rollouts", type=positive_int, default=100, help="rollouts of each estimator and policy")
    parser.add_argument("--reference-rollouts", type=positive_int, default=400, help="rollouts of the reference")
    parser.add_argument("--seed", type=seed_int, default=0, help="seed of the training; gradients have seeds of their own")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gradient_variance"), help="folder for the results")


def check(options: argparse.Namespace, size: Size) -> None:
    """
    Refuse what cannot be measured, before anything is trained.

    :param options: The command's options.
    :param size: Size of a rollout.
    :raises CommandError: if so.
    """
    require_modules(("tqdm", "matplotlib"), extra="compare")
    for name in ("rollouts", "reference_rollouts"):
        if getattr(options, name) < FEWEST_ROLLOUTS:
            raise CommandError(
                f"--{name.replace('_', '-')} received {getattr(options, name)}, needs at least {FEWEST_ROLLOUTS}: "
                "a variance of fewer means nothing"
            )
    if options.budget < 3 * size.simulator_steps:
        raise CommandError(
            f"--budget received {options.budget}, needs at least {3 * size.simulator_steps}: three rollouts of "
            f"{size.simulator_steps} simulator steps, so that start, middle and end of the training differ"
        )
    for env_id in dict.fromkeys(options.env):
        Collector(env_id, 1, size, options.seed).env.close()


def run(options: argparse.Namespace, size: Size | None = None) -> int:
    """
    Train, measure, save; what was measured is saved policy by policy.

    :param options: The command's options.
    :param size: Size of a rollout; None: as the defaults say.
    :return: The exit code: 0, or 130 after Ctrl-C.
    """
    size = Size() if size is None else size
    th.set_num_threads(1)  # small networks gain nothing from a second one
    check(options, size)
    from tqdm import tqdm

    folder = output_folder(options.output)
    if (folder / PAGE).exists() and not (folder / CSV).exists():
        raise CommandError(
            f"--output received {folder}, where {PAGE} is not of this command and would be lost; choose another"
        )
    rows: list[Row] = []
    rollouts = (options.rollouts, options.reference_rollouts)
    updates = -(-options.budget // size.simulator_steps)
    total = len(set(options.env)) * (updates + 3 * (rollouts[0] * len(HORIZONS) + rollouts[1]))
    names = ("env", "budget", "rollouts", "reference_rollouts", "seed")
    settings = {name: getattr(options, name) for name in names} | {"rollout": size._asdict(), "training": TRAINING}
    try:
        with tqdm(total=total, unit="rollout") as bar:

            def done(name: str) -> None:
                bar.set_description(name)
                bar.update()

            for env_id in dict.fromkeys(options.env):
                for number, frozen in enumerate(train(env_id, options.budget, options.seed, size, done)):
                    seed = options.seed + (1 + number * len(HORIZONS)) * SEED_STEP
                    rows += measure(env_id, frozen, seed, rollouts, size, done)
                    save_report(folder, rows, settings)
    except BranchingError as error:
        raise CommandError(f"an env could not be branched any more: {error}") from error
    except KeyboardInterrupt:
        print(f"\nInterrupted: {folder} has the policies that were measured to the end.")
        return 130
    print(f"Saved: {folder / 'README.md'}, and beside it the CSV, the plot and the settings.")
    return 0
