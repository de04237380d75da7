"""
One run of a comparison, in a process of its own: ``python -m sb3_hybrid_grpo.benchmark.worker '{"env": …}'``.

Every evaluation is a line of JSON on standard output; all else that is printed goes to standard error.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.results import Row, row_as_json
from sb3_hybrid_grpo.benchmark.variants import Variant
from sb3_hybrid_grpo.evaluation import evaluate, make_env, normalized_like

# Envs of a run have the seeds SEEDS_APART * seed, + 1, ...; evaluations have others.
SEEDS_APART = 1_000
EVALUATION_SEED = 1_000_000
MOST_EVALUATION_ENVS = 25


@dataclass(frozen=True)
class Run:
    """
    What a worker is to do.

    :param env: The env's id.
    :param variant: The algorithm and its settings.
    :param seed: Number of the run.
    :param budget: Simulator steps; the last whole update within them ends the run.
    :param evaluations: How many, besides the one before the training.
    :param episodes: Episodes of an evaluation.
    :param normalize: Whether to normalise observations and rewards.
    """

    env: str
    variant: Variant
    seed: int
    budget: int
    evaluations: int
    episodes: int
    normalize: bool

    @property
    def simulator_steps(self) -> int:
        """Steps that the run comes to: whole updates."""
        return self.budget // self.variant.update_cost * self.variant.update_cost

    def to_json(self) -> str:
        """Write the run for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """
        Read a run.

        :param text: What ``to_json`` wrote.
        :return: The run.
        """
        fields = json.loads(text)
        return cls(**{**fields, "variant": Variant(**fields["variant"])})


class EvaluationCallback(BaseCallback):
    """
    Evaluates the policy before the training and then at even distances, between two updates: there it stays the same for a
    whole rollout.

    :param run: The run.
    :param report: Called with every evaluation's row.
    """

    def __init__(self, run: Run, report: Callable[[Row], None]) -> None:
        super().__init__()
        self.run_, self.report = run, report
        self._done = 0
        self._evaluating_seconds = 0.0
        self._start = 0.0

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self._steps >= self._done * self.run_.budget / self.run_.evaluations:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    @property
    def _steps(self) -> int:
        model = self.model
        return model.num_simulator_steps if isinstance(model, HybridGRPO) else model.num_timesteps

    def _evaluate(self) -> None:
        before = time.perf_counter()
        run = self.run_
        reward = float(np.mean(evaluate(self.model, evaluation_env(run, self.model), run.episodes).rewards))
        row = Row(
            env=run.env,
            algorithm=run.variant.algorithm,
            settings=run.variant.settings,
            seed=run.seed,
            simulator_steps=self._steps,
            executed_steps=self.model.num_timesteps,
            wall_seconds=round(before - self._start - self._evaluating_seconds, 2),
            mean_reward=reward,
            episodes=run.episodes,
        )
        self.report(row)
        self._done = int(self._steps * run.evaluations / run.budget) + 1
        self._evaluating_seconds += time.perf_counter() - before


def evaluation_env(run: Run, model: BaseAlgorithm) -> VecEnv:
    """
    Make envs that bring the same episodes at every evaluation of every run, none of which is trained on.

    :param run: The run.
    :param model: The model, for its statistics of observations.
    :return: The envs.
    """
    return normalized_like(model, make_env(run.env, min(run.episodes, MOST_EVALUATION_ENVS), EVALUATION_SEED))


def execute(run: Run, report: Callable[[Row], None]) -> None:
    """
    Train, and evaluate along the way.

    :param run: The run.
    :param report: Called with every evaluation's row.
    """
    variant = run.variant
    seed = SEEDS_APART * run.seed
    env: VecEnv = make_env(run.env, variant.n_envs, seed)
    if run.normalize:
        env = VecNormalize(env, gamma=variant.arguments.get("gamma", 0.99))
    model = variant.build(env, seed)
    model.learn(run.simulator_steps // variant.cost_of_a_state, callback=EvaluationCallback(run, report))
    env.close()


def main(text: str) -> None:
    """
    Execute a run.

    :param text: The run, as JSON.
    """
    th.set_num_threads(1)
    # what libraries print below Python, straight to the standard output, would break a line of JSON
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        execute(Run.from_json(text), lambda row: print(row_as_json(row), file=rows, flush=True))
    except Exception as error:
        traceback.print_exc()
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split())[:500])  # in a line, which is what the others show


if __name__ == "__main__":
    main(sys.argv[1])
