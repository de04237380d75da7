"""The arguments of the ``train`` command, and reading ``key:value`` hyperparameters."""

import argparse
import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.cli import CommandError

# Set by the command's own options.
OWN_OPTIONS = ("env", "seed", "verbose", "_init_setup_model")
# Strings like lin_3e-4 stand for a linear decay to 0, as in RL Zoo.
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")


def positive_int(text: str) -> int:
    """
    Read a whole number of at least 1, also written as 50_000 or 5e4.

    :param text: What the user typed.
    :return: The number.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 2**53 or not number.is_integer():
        raise argparse.ArgumentTypeError(f"received {text}, needs a whole number of at least 1")
    return int(number)


def seed_int(text: str) -> int:
    """
    Read a seed.

    :param text: What the user typed.
    :return: The seed, small enough for every generator that it is handed to.
    """
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**31:
        raise argparse.ArgumentTypeError(f"received {text}, needs a whole number from 0 to {2**31 - 1}")
    return seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's arguments.

    :param parser: The subcommand's parser.
    """
    parser.add_argument("--env", required=True, help="id of a gymnasium env, for example CartPole-v1 or module:Env-v0")
    parser.add_argument(
        "--timesteps", type=positive_int, default=40_000, help="executed steps; simulator steps are n_samples times as many"
    )
    parser.add_argument("--n-envs", type=positive_int, default=4, help="envs that run side by side")
    parser.add_argument("--seed", type=seed_int, default=0, help="seed of the training; evaluation uses seeds of its own")
    parser.add_argument("--normalize", action="store_true", help="normalise observations and rewards (VecNormalize)")
    parser.add_argument(
        "--hyperparams",
        nargs="+",
        action="extend",
        default=[],
        metavar="key:value",
        help="arguments of HybridGRPO, for example gamma:0.9 n_samples:8 branch_horizon:free learning_rate:lin_1e-3",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("logs"), help="folder of the runs; each gets a number")
    parser.add_argument("--eval-episodes", type=positive_int, default=20, help="episodes of the evaluation")


def parse_hyperparams(
    items: Sequence[str], algorithm: type[OnPolicyAlgorithm] = HybridGRPO, option: str = "--hyperparams"
) -> dict[str, Any]:
    """
    Read ``key:value`` pairs; a value that is no Python literal is taken as a word.

    :param items: What the user typed, for example ``["gamma:0.9", "branch_horizon:free"]``.
    :param algorithm: The class whose arguments they are.
    :param option: What the user typed them behind, for messages.
    :return: The arguments.
    :raises CommandError: if an item is no pair, or no argument of the class
    """
    accepted = [name for name in inspect.signature(algorithm).parameters if name not in OWN_OPTIONS]
    hyperparams: dict[str, Any] = {}
    for item in items:
        key, colon, text = item.partition(":")
        if not colon:
            raise CommandError(f"{option} received {item!r}, needs key:value, for example gamma:0.9")
        if key not in accepted:
            raise CommandError(f"{option} received the unknown key {key!r}; accepted are: {', '.join(accepted)}")
        try:
            hyperparams[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            hyperparams[key] = text
    return hyperparams


def with_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Replace ``lin_x`` strings by schedules that fall from x to 0.

    :param hyperparams: Arguments of HybridGRPO as typed.
    :return: A copy that HybridGRPO understands.
    """
    built = dict(hyperparams)
    for key in SCHEDULES:
        value = built.get(key)
        if isinstance(value, str):
            try:
                start = float(value.removeprefix("lin_"))
            except ValueError:
                raise CommandError(
                    f"--hyperparams received {key}:{value}, needs a number, or lin_ and a number for a linear decay to 0"
                ) from None
            built[key] = LinearSchedule(start, 0.0, 1.0)
    return built
