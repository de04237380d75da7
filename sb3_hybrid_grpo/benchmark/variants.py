"""The algorithms that are compared, and how each of them collects an update of a given size."""

import inspect
from dataclasses import dataclass
from typing import Any

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.cli import CommandError
from sb3_hybrid_grpo.train_arguments import parse_hyperparams, with_schedules

# HybridGRPO's corners, by the arguments that make them.
ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {}),
    "trpo": (TRPO, {}),
    "hybrid": (HybridGRPO, {}),
    "paper": (HybridGRPO, {"branch_horizon": 1, "advantage_estimator": "paper", "reward_transform": "tanh"}),
    "grpo": (HybridGRPO, {"branch_horizon": 1, "advantage_estimator": "grpo"}),
}
# Which arguments a variant's `settings` show.
SHOWN = ("n_envs", "n_steps", "batch_size", "n_samples", "branch_horizon")


@dataclass(frozen=True)
class Variant:
    """
    An algorithm with all its arguments.

    :param algorithm: As named on the command line, for example ``hybrid,branch_horizon:16``.
    :param n_envs: Envs side by side.
    :param arguments: Arguments of the algorithm's class, schedules still as words.
    """

    algorithm: str
    n_envs: int
    arguments: dict[str, Any]

    @property
    def settings(self) -> str:
        """How data is collected and used, in a line."""
        known = {"n_envs": self.n_envs, **self.arguments}
        return " ".join(f"{name}:{known[name]}" for name in SHOWN if name in known)

    @property
    def n_samples(self) -> int:
        """Members of a group; 1 for an algorithm without groups."""
        return int(self.arguments.get("n_samples", 1))

    @property
    def update_size(self) -> int:
        """Samples of an update."""
        return int(self.n_envs * self.arguments["n_steps"] * self.n_samples)

    def build(self, env: Any, seed: int) -> OnPolicyAlgorithm:
        """
        Make the model.

        :param env: The envs to train in.
        :param seed: The training's seed.
        :return: The model.
        """
        policy = self.arguments.get("policy", "MlpPolicy")
        arguments = with_schedules({name: value for name, value in self.arguments.items() if name != "policy"})
        return algorithm_class(self.algorithm)(policy, env, seed=seed, device="cpu", **arguments)


def algorithm_class(algorithm: str) -> type[OnPolicyAlgorithm]:
    """
    Look up an algorithm.

    :param algorithm: Its name, with or without arguments of its own.
    :return: The class.
    :raises CommandError: if there is none of that name
    """
    name = algorithm.partition(",")[0]
    if name not in ALGORITHMS:
        raise CommandError(
            f"--algorithms received {algorithm!r}; known are {', '.join(ALGORITHMS)}, each optionally with arguments of its "
            "own: hybrid,n_samples:8,branch_horizon:16"
        )
    return ALGORITHMS[name][0]


def make_variant(algorithm: str, hyperparams: dict[str, Any], n_steps: int, update_size: int, batch_size: int) -> Variant:
    """
    Spread an update over envs: as many as there is data for ``n_steps`` steps of each; where not even one env (one group) has
    that, a single one with fewer steps.

    :param algorithm: As named on the command line.
    :param hyperparams: Arguments that all algorithms share; those that the class does not have are left out.
    :param n_steps: Longest stretch that an env executes between two updates.
    :param update_size: Samples of an update, members included.
    :param batch_size: Samples of a minibatch.
    :return: The variant.
    :raises CommandError: if the algorithm or its arguments are unknown, or the update cannot be spread evenly
    """
    name, *items = algorithm.split(",")
    cls, arguments = algorithm_class(name), dict(ALGORITHMS[name][1])
    own = parse_hyperparams(items, cls, option=f"--algorithms {algorithm}")
    accepted = inspect.signature(cls).parameters
    arguments = {key: value for key, value in hyperparams.items() if key in accepted} | arguments | own
    arguments.setdefault("batch_size", batch_size)
    for key in ("n_samples", "branch_horizon"):
        if key in accepted:
            arguments.setdefault(key, accepted[key].default)
    n_samples = int(arguments.get("n_samples", 1))
    n_steps = min(int(arguments.get("n_steps", n_steps)), update_size // n_samples)
    n_envs = update_size // (n_samples * max(n_steps, 1))
    if n_steps < 1 or n_envs * n_steps * n_samples != update_size:
        raise CommandError(
            f"{algorithm}: an update of {update_size} samples cannot be spread over envs with {n_samples} members and "
            f"{n_steps} steps each; --update-sizes must be multiples of n_samples * n_steps, or of n_samples if smaller"
        )
    arguments["n_steps"] = n_steps
    return Variant(algorithm, n_envs, arguments)
