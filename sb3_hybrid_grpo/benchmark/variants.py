"""The compared algorithms, and how each collects an update of a given size."""

import inspect
import re
from typing import Any, NamedTuple

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.presets import Preset
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, with_schedules
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.commands.evaluation import default_policy

ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {}),
    "trpo": (TRPO, {}),
    "hybrid": (HybridGRPO, {}),
    "paper": (HybridGRPO, HybridGRPO.paper_kwargs()),
    "grpo": (HybridGRPO, HybridGRPO.grpo_kwargs()),
}
SHOWN = ("n_envs", "n_steps", "batch_size", "n_samples", "branch_horizon")  # in a variant's `settings`


class Variant(NamedTuple):
    """An algorithm as named on the command line, with all arguments of its class; schedules are still strings."""

    algorithm: str
    n_envs: int
    arguments: dict[str, Any]

    @property
    def settings(self) -> str:
        """How data is collected and used, as one line."""
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
    """The class of an algorithm, whose name may be followed by arguments; CommandError if the name is unknown."""
    name = algorithm.partition(",")[0]
    if name not in ALGORITHMS:
        raise CommandError(
            f"--algorithms received {algorithm!r}; known are {', '.join(ALGORITHMS)}, each optionally with arguments of its "
            "own: hybrid,n_samples:8,branch_horizon:16"
        )
    return ALGORITHMS[name][0]


def make_variant(algorithm: str, preset: Preset, update_size: int, batch_size: int) -> Variant:
    """
    Divide an update among the preset's ``n_envs``, or else among as many envs as get ``executed_steps`` steps each, at least
    one. Arguments that the class does not have are left out. CommandError if the algorithm or its arguments are
    unknown, or the update cannot be divided evenly.
    """
    name, *items = re.split(r",(?![^\[{(]*[\]})])", algorithm)  # not at commas within brackets
    cls, arguments = algorithm_class(name), dict(ALGORITHMS[name][1])
    own = parse_hyperparams(items, option=f"--algorithms {algorithm}")
    with_schedules(own)  # finds mistakes early
    accepted = inspect.signature(cls).parameters
    groups = {key: accepted[key].default for key in ("n_samples", "branch_horizon") if key in accepted}
    shared = {key: value for key, value in preset.hyperparams.items() if key in accepted}
    arguments = {"batch_size": batch_size, **groups, **shared, **arguments, **own}
    n_samples = arguments.get("n_samples", 1)
    for key, value in (("n_samples", n_samples), ("batch_size", arguments["batch_size"])):
        if type(value) is not int or value < 1:
            raise CommandError(f"{algorithm}: received {key}:{value}, needs a whole number of at least 1")
    spread = update_size // preset.n_envs if preset.n_envs else min(preset.executed_steps * n_samples, update_size)
    n_steps = arguments.setdefault("n_steps", spread)
    n_envs = preset.n_envs or max(update_size // n_steps, 1)
    if n_envs * n_steps != update_size or n_steps % n_samples:
        raise CommandError(
            f"{algorithm}: an update of {update_size} samples cannot be spread over {n_envs} envs with {n_steps} samples "
            f"each, of groups of {n_samples}; --update-sizes must be multiples of both"
        )
    return Variant(algorithm, n_envs, arguments)
