"""What the tests of the launcher for RL Baselines3 Zoo share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import pytest

from sb3_hybrid_grpo.zoo import register
from sb3_hybrid_grpo.zoo.__main__ import main


@contextmanager
def zoo_in(folder: Path) -> Iterator[None]:
    """
    The Zoo with HybridGRPO, working in a folder. It puts a TimeLimit of its own into gymnasium: not for other tests.

    :param folder: The folder
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (gym.wrappers, gym.wrappers.common):
            patch.setattr(module, "TimeLimit", gym.wrappers.TimeLimit)
        pytest.importorskip("rl_zoo3", reason="needs the extra zoo")
        register()
        patch.chdir(folder)
        patch.setattr("sys.argv", ["hybrid-grpo-zoo"])
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        yield


def command(*arguments: object) -> None:
    """
    Run a command of the launcher.

    :param arguments: Its command line
    """
    assert main([str(argument) for argument in arguments]) == 0
