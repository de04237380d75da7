"""The command line: ``python -m sb3_hybrid_grpo train --env CartPole-v1``."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sb3_hybrid_grpo import __version__, check, train
from sb3_hybrid_grpo.benchmark import compare, gradient_variance, report
from sb3_hybrid_grpo.cli import CommandError


class Command(NamedTuple):
    """
    A command.

    :param help: One line for ``--help``.
    :param add_arguments: Adds the command's own arguments to its parser.
    :param run: Does the work and returns the exit code; a ``CommandError`` becomes a usage error.
    :param subcommands: Commands below this one, by name; without one of them, ``run`` is called.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    subcommands: "Mapping[str, Command]" = MappingProxyType({})


COMMANDS = {
    "train": Command("train HybridGRPO on one env, evaluate it, save the policy", train.add_arguments, train.run),
    "check": Command("show how an env is branched, whether that is exact, and what it costs", check.add_arguments, check.run),
    "compare": Command(
        "compare HybridGRPO with PPO and TRPO at equal simulator steps",
        compare.add_arguments,
        compare.run,
        {
            "report": Command("draw the results and write a page about them", report.add_arguments, report.run),
            "gradient-variance": Command(
                "measure the variance and the bias of each estimator's policy gradient",
                gradient_variance.add_arguments,
                gradient_variance.run,
            ),
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_hybrid_grpo", description="Hybrid GRPO for Stable-Baselines3")
    parser.add_argument("--version", action="version", version=__version__)
    add_commands(parser, COMMANDS, required=True)
    options = parser.parse_args(arguments)
    try:
        exit_code: int = options.run(options)
    except CommandError as error:
        options.parser.error(str(error))
    return exit_code


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, Command], required: bool) -> None:
    """
    Add commands to a parser.

    :param parser: The parser.
    :param commands: The commands by name.
    :param required: Whether one of them must be typed.
    """
    subparsers = parser.add_subparsers(required=required, metavar="command")
    for name, command in commands.items():
        below = subparsers.add_parser(
            name, help=command.help, description=command.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_arguments(below)
        below.set_defaults(run=command.run, parser=below)
        if command.subcommands:
            add_commands(below, command.subcommands, required=False)


if __name__ == "__main__":
    sys.exit(main())
