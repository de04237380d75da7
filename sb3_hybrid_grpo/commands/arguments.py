"""Reading numbers and ``key:value`` hyperparameters from the command line."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from sb3_hybrid_grpo.commands.cli import CommandError

# Strings like lin_3e-4 stand for a linear decay to 0, as in RL Zoo.
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")


def positive_int(text: str) -> int:
    """Read a whole number of at least 1, also written as 50_000 or 5e4."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 2**53 or not number.is_integer():
        raise argparse.ArgumentTypeError(f"received {text}, needs a whole number of at least 1")
    return int(number)


def seed_int(text: str) -> int:
    """Read a seed that is small enough for all generators."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"received {text}, needs a whole number from 0 to {2**31 - 1}")
    return int(text)


def parse_hyperparams(items: Sequence[str], option: str = "--hyperparams") -> dict[str, Any]:
    """
    Read ``key:value`` pairs. A value that is no Python literal stays a string.

    :param items: The pairs, for example ``["gamma:0.9", "branch_horizon:auto"]``.
    :param option: The command-line option before the pairs, for messages.
    :raises CommandError: if an item is no pair
    """
    hyperparams: dict[str, Any] = {}
    for item in items:
        key, colon, text = item.partition(":")
        if key in ("env", "seed", "verbose") or key.startswith("_"):
            raise CommandError(f"{option} received {item!r}, but {key} is no hyperparameter: remove it, or see --help")
        if not colon:
            raise CommandError(f"{option} received {item!r}, needs key:value, for example gamma:0.9")
        try:
            hyperparams[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            hyperparams[key] = text
    return hyperparams


def with_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Copy hyperparameters with ``lin_x`` replaced by schedules that fall from x to 0; CommandError if x is no number."""
    built = dict(hyperparams)
    for key in SCHEDULES:
        value = built.get(key)
        if isinstance(value, str):
            try:
                built[key] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
            except ValueError:
                raise CommandError(
                    f"--hyperparams received {key}:{value}, needs a number, or lin_ and a number for a linear decay to 0"
                ) from None
    return built
