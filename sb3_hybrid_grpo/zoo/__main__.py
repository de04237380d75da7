"""The launcher: ``python -m sb3_hybrid_grpo.zoo train --env CartPole-v1``, with every option that the Zoo's command has."""

import argparse
import functools
import importlib
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.commands.cli import CommandError, require_modules
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.zoo import ALGORITHM, register


class Command(NamedTuple):
    """
    A command of the Zoo.

    :param help: One line for ``--help``.
    :param module: Where the Zoo has it.
    :param function: What it calls there; None: the module is a script.
    :param takes_algorithm: Whether it has the option ``--algo``.
    """

    help: str
    module: str
    function: str | None = None
    takes_algorithm: bool = True


COMMANDS = {
    "train": Command("train an agent, or tune hyperparameters (--optimize)", "rl_zoo3.train", "train"),
    "enjoy": Command("watch a trained agent", "rl_zoo3.enjoy", "enjoy"),
    "plot_train": Command("plot the episodes of trainings", "rl_zoo3.plots", "plot_train"),
    "all_plots": Command("plot the evaluations of trainings, and save them", "rl_zoo3.plots", "all_plots", False),
    "plot_from_file": Command("plot what all_plots saved", "rl_zoo3.plots", "plot_from_file", False),
    "record_video": Command("record a video of a trained agent", "rl_zoo3.record_video"),
    "load_from_hub": Command("download a trained agent", "rl_zoo3.load_from_hub"),
    "push_to_hub": Command("upload a trained agent", "rl_zoo3.push_to_hub"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one of the Zoo's commands, with HybridGRPO as the algorithm unless ``--algo`` names another.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="hybrid-grpo-zoo",
        description="RL Baselines3 Zoo with HybridGRPO.",
        epilog="commands (each with --help of its own):\n"
        + "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the command's own options, as in the Zoo")
    typed = parser.parse_args(arguments)
    command = COMMANDS[typed.command]
    algorithm = ["--algo", ALGORITHM] if command.takes_algorithm else []
    try:
        require_modules(("rl_zoo3", "requests", "seaborn"), extra="zoo")
        register()
        # what the user types comes later, and wins
        sys.argv = [f"{parser.prog} {typed.command}", *algorithm, *typed.options]
        run(command)
    except (CommandError, BranchingError) as error:
        parser.error(str(error))
    return 0


def run(command: Command) -> None:
    """
    Run a command of the Zoo, which reads ``sys.argv``.

    :param command: The command.
    """
    if command.function is None:
        mend_scripts()
        runpy.run_module(command.module, run_name="__main__")
    else:
        getattr(importlib.import_module(command.module), command.function)()


def mend_scripts() -> None:
    """Change what stands in the way of the Zoo's scripts."""
    import rl_zoo3.utils

    # They load agents together with their envs, which HybridGRPO makes branchable: in this process, not in those of a
    # SubprocVecEnv.
    rl_zoo3.utils.create_test_env = functools.partial(rl_zoo3.utils.create_test_env, vec_env_cls=DummyVecEnv)
    # huggingface_sb3 has renamed a function that push_to_hub imports
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *arguments: hub._generate_metadata(*arguments).to_dict()  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
