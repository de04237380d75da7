"""Measuring a model: rollouts and updates, again and again, on one core."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import HybridGRPO


class Speed(NamedTuple):
    """
    One measurement.

    :param rollout: Simulator steps per second while collecting.
    :param update: Samples per second while updating, all epochs of a sample counted as one.
    """

    rollout: float
    update: float

    @property
    def overall(self) -> float:
        """Samples per second of collecting and updating together."""
        return 1.0 / (1.0 / self.rollout + 1.0 / self.update)

    def beside(self, peer: "Speed") -> dict[str, float]:
        """
        Prepare for a row.

        :param peer: PPO's, measured right before.
        :return: Speeds, and ratios to the peer's.
        """
        ratios = {
            f"{name}_to_ppo": own / other
            for (name, own), other in zip(self.named().items(), peer.named().values(), strict=True)
        }
        return self.named() | ratios

    def named(self) -> dict[str, float]:
        """
        Prepare for a row.

        :return: Speed by name.
        """
        return {"rollout": self.rollout, "update": self.update, "overall": self.overall}


@dataclass
class Runner:
    """
    A model that can be measured again and again.

    :param model: The model.
    :param callback: What ``_setup_learn`` made of no callback.
    """

    model: OnPolicyAlgorithm
    callback: Any = field(init=False)

    def __post_init__(self) -> None:
        _, self.callback = self.model._setup_learn(total_timesteps=sys.maxsize, callback=None)

    @property
    def samples(self) -> int:
        """Samples of a rollout."""
        n_samples = self.model.n_samples if isinstance(self.model, HybridGRPO) else 1
        return self.model.n_steps * self.model.n_envs * n_samples

    def simulator_steps(self) -> int:
        """Steps that any simulator took so far."""
        return self.model.num_simulator_steps if isinstance(self.model, HybridGRPO) else self.model.num_timesteps

    def warm_up(self, calls: int) -> None:
        """
        Let the model do what it does at first only: initialise lazily, compile, record.

        :param calls: Steps of each env to take at least, and minibatches to learn from.
        """
        self.measure()
        if isinstance(self.model, HybridGRPO):  # what the others do at first, they do in the first call
            for _ in range(calls // self.model.n_steps):
                self.collect()
            minibatches = self.model.n_epochs * math.ceil(self.samples / self.model.batch_size)
            for _ in range(calls // minibatches):
                self.model.train()

    def collect(self) -> float:
        """
        Collect one rollout.

        :return: Simulator steps per second.
        """
        model, before = self.model, self.simulator_steps()
        assert model.env is not None
        start = time.perf_counter()
        model.collect_rollouts(model.env, self.callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        return (self.simulator_steps() - before) / (time.perf_counter() - start)

    def update(self) -> float:
        """
        Update once, from the rollout collected last.

        :return: Samples per second.
        """
        start = time.perf_counter()
        self.model.train()
        return self.samples / (time.perf_counter() - start)

    def measure(self) -> Speed:
        """
        Collect one rollout and update once.

        :return: The speed of both.
        """
        return Speed(self.collect(), self.update())

    def close(self) -> None:
        """End the envs, and the processes that they may have."""
        assert self.model.env is not None
        self.model.env.close()


@contextmanager
def one_core() -> Iterator[None]:
    """
    Keep all threads of this process on one core, where the system lets it: JAX has threads that no option of its own ends.

    :return: A context manager; after it all cores are free again.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    _keep_to({max(cores)})
    try:
        yield
    finally:
        _keep_to(cores)


def _keep_to(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread), cores)
