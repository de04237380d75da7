"""The algorithms that are compared, and how each of them collects an update of a given size."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.presets import Preset
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, with_schedules
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.commands.evaluation import default_policy

# HybridGRPO's corners, by the arguments that make them.
ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {}),
    "trpo": (TRPO, {}),
    "hybrid": (HybridGRPO, {}),
    "paper": (HybridGRPO, HybridGRPO.paper_kwargs()),
    "grpo": (HybridGRPO, HybridGRPO.grpo_kwargs()),
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
    def update_size(self) -> int:
        """Samples of an update, members included."""
        return int(self.n_envs * self.arguments["n_steps"])

    def build(self, env: Any, seed: int) -> OnPolicyAlgorithm:
        """Make the model; ValueError if the class does not take the arguments."""
        arguments = {"policy": default_policy(env.observation_space), "device": "cpu", **with_schedules(self.arguments)}
        return algorithm_class(self.algorithm)(env=env, seed=seed, **arguments)


def algorithm_class(algorithm: str) -> type[OnPolicyAlgorithm]:
    """The class of an algorithm, whose name may have arguments of its own; CommandError if there is none."""
    name = algorithm.partition(",")[0]
    if name not in ALGORITHMS:
        raise CommandError(
            f"--algorithms received {algorithm!r}; known are {', '.join(ALGORITHMS)}, each optionally with arguments of its "
            "own: hybrid,n_samples:8,branch_horizon:16"
        )
    return ALGORITHMS[name][0]


def make_variant(algorithm: str, preset: Preset, update_size: int, batch_size: int) -> Variant:
    """
    Spread an update over envs: over the preset's ``n_envs``, or over as many as there is data for ``executed_steps`` steps of
    each; where not even one env (one group) has that, over a single one.

    :param algorithm: As named on the command line.
    :param preset: The arguments that all algorithms share; those that the class does not have are left out.
    :param update_size: Samples of an update, members included.
    :param batch_size: Samples of a minibatch.
    :return: The variant.
    :raises CommandError: if the algorithm or its arguments are unknown, or the update cannot be spread evenly
    """
    name, *items = re.split(r",(?![^\[{(]*[\]})])", algorithm)  # not at the commas within brackets
    cls, arguments = algorithm_class(name), dict(ALGORITHMS[name][1])
    own = parse_hyperparams(items, cls, option=f"--algorithms {algorithm}")
    with_schedules(own)  # its mistakes show here
    accepted = inspect.signature(cls).parameters
    arguments = {key: value for key, value in preset.hyperparams.items() if key in accepted} | arguments | own
    arguments.setdefault("batch_size", batch_size)
    for key in ("n_samples", "branch_horizon"):
        if key in accepted:
            arguments.setdefault(key, accepted[key].default)
    n_samples = arguments.get("n_samples", 1)
    for key, value in (("n_samples", n_samples), ("batch_size", arguments["batch_size"])):
        if type(value) is not int or value < 1:
            raise CommandError(f"{algorithm}: received {key}:{value}, needs a whole number of at least 1")
    n_steps = arguments.setdefault("n_steps", min(preset.executed_steps * n_samples, update_size))
    n_envs = preset.n_envs or max(update_size // n_steps, 1)
    if preset.n_envs and "n_steps" not in own:
        n_steps = arguments["n_steps"] = update_size // n_envs
    if n_envs * n_steps != update_size or n_steps % n_samples:
        raise CommandError(
            f"{algorithm}: an update of {update_size} samples cannot be spread over {n_envs} envs with {n_steps} samples "
            f"each, {n_samples} of a step; --update-sizes must be multiples of both"
        )
    return Variant(algorithm, n_envs, arguments)
