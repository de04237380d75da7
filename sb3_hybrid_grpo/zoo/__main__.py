"""The launcher: ``python -m sb3_hybrid_grpo.zoo train --env CartPole-v1``, with every option that the Zoo's command has."""

import argparse
import functools
import importlib
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.commands.cli import CommandError, require_modules
from sb3_hybrid_grpo.errors import BranchingError, FleetError
from sb3_hybrid_grpo.zoo import ALGORITHM, register

COMMANDS = {
    "train": ("rl_zoo3.train", "train an agent, or tune hyperparameters (--optimize)"),
    "enjoy": ("rl_zoo3.enjoy", "watch a trained agent"),
    "plot_train": ("rl_zoo3.plots.plot_train", "plot the episodes of trainings"),
    "all_plots": ("rl_zoo3.plots.all_plots", "plot the evaluations of trainings, and save them"),
    "plot_from_file": ("rl_zoo3.plots.plot_from_file", "plot what all_plots saved"),
    "record_video": ("rl_zoo3.record_video", "record a video of a trained agent"),
    "load_from_hub": ("rl_zoo3.load_from_hub", "download a trained agent"),
    "push_to_hub": ("rl_zoo3.push_to_hub", "upload a trained agent"),
}
_WITHOUT_ALGORITHM = ("all_plots", "plot_from_file")
_SCRIPTS = ("record_video", "load_from_hub", "push_to_hub")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one of the Zoo's commands, with HybridGRPO as the algorithm unless ``--algo`` names another.

    :param arguments: The command line without the program's name; ``sys.argv`` by default.
    :return: The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="hybrid-grpo-zoo",
        description="RL Baselines3 Zoo with HybridGRPO.",
        epilog="\n".join(f"{name:<16}{text}" for name, (_, text) in COMMANDS.items())
        + "\n\ntrain --vec-env ray --vec-env-kwargs \"address:'auto'\" envs_per_worker:4 runs the envs on a Ray cluster",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="one of those below; each has its own --help")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the command's own options, as in the Zoo")
    typed = parser.parse_args(arguments)
    algorithm = [] if typed.command in _WITHOUT_ALGORITHM else ["--algo", ALGORITHM]
    try:
        require_modules(("rl_zoo3", "requests", "seaborn"), extra="zoo")
        register()
        options = choose_vec_env(typed.options) if typed.command == "train" else typed.options
        # the user's options come later, and win
        sys.argv = [f"{parser.prog} {typed.command}", *algorithm, *options]
        run(typed.command)
    except (CommandError, BranchingError, FleetError) as error:
        parser.error(str(error))
    return 0


def choose_vec_env(options: Sequence[str]) -> list[str]:
    """
    Apply the options that the Zoo does not have: ``--vec-env ray``, and ``--vec-env-kwargs``, arguments of the VecEnv.

    :param options: Options of ``train``.
    :return: The other options.
    """
    import rl_zoo3.train
    from rl_zoo3.utils import StoreDict

    from sb3_hybrid_grpo.zoo.manager import experiment_manager

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vec-env", default="dummy")
    parser.add_argument("--vec-env-kwargs", nargs="+", action=StoreDict)
    found, others = parser.parse_known_args(options)
    vec_env_class: Any = None
    if found.vec_env == "ray":
        require_modules(("ray",), extra="ray")
        from sb3_hybrid_grpo.distributed import RayVecEnv as vec_env_class
    else:
        others += ["--vec-env", found.vec_env]
    manager = functools.partial(experiment_manager, vec_env_class=vec_env_class, vec_env_kwargs=found.vec_env_kwargs)
    rl_zoo3.train.ExperimentManager = manager  # type: ignore[attr-defined, assignment]
    return others


def run(command: str) -> None:
    """
    Run a command of the Zoo, which reads ``sys.argv``.

    :param command: One of ``COMMANDS``.
    """
    import rl_zoo3.utils

    # load() makes an agent's envs branchable, which works in this process, but not in those of a SubprocVecEnv
    rl_zoo3.utils.create_test_env = functools.partial(rl_zoo3.utils.create_test_env, vec_env_cls=DummyVecEnv)
    if command == "push_to_hub":  # it imports a function that huggingface_sb3 has renamed
        hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
        if not hasattr(hub, "generate_metadata"):
            hub.generate_metadata = lambda *arguments: hub._generate_metadata(*arguments).to_dict()
    path, _ = COMMANDS[command]
    if command in _SCRIPTS:
        runpy.run_module(path, run_name="__main__")
        return
    module: Any = importlib.import_module(path)
    if command == "plot_train":
        module.load_results = importlib.import_module("sb3_hybrid_grpo.zoo.plots").load_scaled_results
    getattr(module, command)()


if __name__ == "__main__":
    sys.exit(main())
