"""The command line: ``python -m sb3_hybrid_grpo train --env CartPole-v1``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sb3_hybrid_grpo import __version__, train
from sb3_hybrid_grpo.benchmark import compare
from sb3_hybrid_grpo.cli import CommandError


class Command(NamedTuple):
    """
    A subcommand.

    :param help: One line for ``--help``.
    :param add_arguments: Adds the subcommand's own arguments to its parser.
    :param run: Does the work and returns the exit code; a ``CommandError`` becomes a usage error.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "train": Command("train HybridGRPO on one env, evaluate it, save the policy", train.add_arguments, train.run),
    "compare": Command("compare HybridGRPO with PPO and TRPO at equal simulator steps", compare.add_arguments, compare.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a subcommand.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_hybrid_grpo", description="Hybrid GRPO for Stable-Baselines3")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    parsers = {}
    for name, command in COMMANDS.items():
        parsers[name] = subparsers.add_parser(
            name, help=command.help, description=command.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_arguments(parsers[name])
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except CommandError as error:
        parsers[options.command].error(str(error))


if __name__ == "__main__":
    sys.exit(main())
