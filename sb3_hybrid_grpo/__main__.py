"""The command line: ``python -m sb3_hybrid_grpo train --env CartPole-v1``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from sb3_hybrid_grpo import __version__
from sb3_hybrid_grpo.commands.cli import CommandError, install_command

# Command: its module, with a docstring, add_arguments(parser), and run(options) -> exit code; and what it does.
COMMANDS = {
    "train": ("commands.train", "train HybridGRPO on one env, evaluate it, save the policy"),
    "check": ("commands.check", "show how an env is branched, whether its siblings are exact, and what they cost"),
    "compare": ("benchmark.compare", "compare HybridGRPO with PPO and TRPO at equal simulator steps"),
    "compare report": ("benchmark.report", "draw the results of compare, and write a page about them"),
    "compare gradient-variance": (
        "benchmark.gradient_variance",
        "measure the variance and the bias of each estimator's policy gradient",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else " ".join(words[:1])
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo",
        description="Hybrid GRPO for Stable-Baselines3",
        epilog="commands (each has its own --help):\n"
        + "\n".join(f"  {name:<27}{text}" for name, (_, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=[one for one in COMMANDS if " " not in one], help="one of those below")
    if name not in COMMANDS:
        parser.parse_args(words[:1])  # --help, --version, or an error
    # imported only now: some commands have optional dependencies
    return run_command(f"sb3_hybrid_grpo.{COMMANDS[name][0]}", f"{parser.prog} {name}", words[len(name.split()) :])


def run_command(module: str, prog: str, arguments: Sequence[str]) -> int:
    """
    Run the command of a module.

    :param module: The module's name.
    :param prog: The words that start the command.
    :param arguments: The rest of the command line.
    :return: The exit code; a ``CommandError`` becomes a usage error.
    """
    parser = argparse.ArgumentParser(prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = module.rpartition(".")[2]
        parser.error(f"{error}; install with: {install_command(extra if extra in ('speed', 'zoo') else 'compare')}")
    parser.description = command.__doc__
    command.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        exit_code: int = command.run(options)
    except CommandError as error:
        parser.error(str(error))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
