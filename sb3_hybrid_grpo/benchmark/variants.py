"""The algorithms that are compared, and how each of them collects an update of a given size."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.cli import CommandError
from sb3_hybrid_grpo.evaluation import default_policy
from sb3_hybrid_grpo.train_arguments import parse_hyperparams, with_schedules
from sb3_hybrid_grpo.validation import check_arguments

# HybridGRPO's corners, by the arguments that make them.
ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "ppo": (PPO, {}),
    "trpo": (TRPO, {}),
    "hybrid": (HybridGRPO, {}),
    "paper": (HybridGRPO, HybridGRPO.paper_kwargs()),
    "grpo": (HybridGRPO, HybridGRPO.grpo_kwargs()),
}
CHECKED = tuple(inspect.signature(check_arguments).parameters)
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

    @property
    def cost_of_a_state(self) -> int:
        """Simulator steps for each executed one, that one included."""
        steps_again = bool(self.arguments.get("action_selection", "on_policy") != "on_policy")
        return self.n_samples + steps_again

    @property
    def update_cost(self) -> int:
        """Simulator steps for the samples of an update."""
        return self.update_size // self.n_samples * self.cost_of_a_state

    def build(self, env: Any, seed: int) -> OnPolicyAlgorithm:
        """
        Make the model.

        :param env: The envs to train in.
        :param seed: The training's seed.
        :return: The model.
        """
        arguments = {"policy": default_policy(env.observation_space), "device": "cpu", **with_schedules(self.arguments)}
        return algorithm_class(self.algorithm)(env=env, seed=seed, **arguments)


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
    name, *items = re.split(r",(?![^\[{(]*[\]})])", algorithm)  # not at the commas within brackets
    cls, arguments = algorithm_class(name), dict(ALGORITHMS[name][1])
    own = parse_hyperparams(items, cls, option=f"--algorithms {algorithm}")
    with_schedules(own)  # its mistakes show here
    accepted = inspect.signature(cls).parameters
    arguments = {key: value for key, value in hyperparams.items() if key in accepted} | arguments | own
    arguments.setdefault("batch_size", batch_size)
    for key in ("n_samples", "branch_horizon"):
        if key in accepted:
            arguments.setdefault(key, accepted[key].default)
    n_samples, most_steps = arguments.get("n_samples", 1), arguments.get("n_steps", n_steps)
    for key, value in (("n_samples", n_samples), ("n_steps", most_steps), ("batch_size", arguments["batch_size"])):
        if type(value) is not int or value < 1:
            raise CommandError(f"{algorithm}: received {key}:{value}, needs a whole number of at least 1")
    n_steps = min(most_steps, update_size // n_samples)
    n_envs = update_size // (n_samples * max(n_steps, 1))
    if n_steps < 1 or n_envs * n_steps * n_samples != update_size or ("n_steps" in own and n_steps != own["n_steps"]):
        raise CommandError(
            f"{algorithm}: an update of {update_size} samples cannot be spread over envs with {n_samples} members and "
            f"{most_steps} steps each; --update-sizes must be multiples of n_samples * n_steps, or of n_samples if smaller"
        )
    arguments["n_steps"] = n_steps
    if cls is HybridGRPO:
        given = {key: arguments.get(key, parameter.default) for key, parameter in accepted.items() if key in CHECKED}
        try:
            check_arguments(**given)
        except ValueError as error:
            raise CommandError(f"{algorithm}: {error}") from error
    return Variant(algorithm, n_envs, arguments)
