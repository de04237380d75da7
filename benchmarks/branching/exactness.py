"""
Shows that branching is exact, env by env: an env that is branched at every step, or lives with siblings, against a twin that
never is, bit for bit, through ends of episodes. twins.py does it.

    python benchmarks/branching/exactness.py > benchmarks/branching/exactness.md
    pip install mujoco==3.6.0 gymnasium-robotics "shimmy[dm-control]"  # mujoco 4 breaks some of these
    cd benchmarks/branching && python exactness.py --families dm_control gymnasium-robotics > exactness_mujoco_3.6.md

Twins are processes of their own. Member 0 has three siblings. Where they fork from it, the first takes the same actions and
must see the same; the others take random ones, and must see what forks of the twin's process see (at every 16th step, where
all fork at every step). Families whose packages are not installed are said to be missing.
"""

import argparse
import functools
import importlib
import sys
import warnings
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.atari_wrappers import AtariWrapper
from twins import row, table_head, versions_of

from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.commands.cli import versions

SLOW = {"CarRacing-v3": 10}
"""Envs that take a fraction of the steps."""
FAMILIES: dict[str, tuple[str, list[str]]] = {  # what provides them, and their ids
    "classic control": (
        "gymnasium",
        ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"],
    ),
    "toy text": ("gymnasium", ["Blackjack-v1", "CliffWalking-v1", "FrozenLake-v1", "Taxi-v4"]),
    "Box2D": (
        "Box2D",
        ["LunarLander-v3", "LunarLander-v3 wind", "LunarLanderContinuous-v3", "BipedalWalker-v3", "CarRacing-v3"],
    ),
    "MuJoCo": (
        "mujoco",
        [
            *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5"),
            *("InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"),
        ],
    ),
    "Atari": ("ale_py", ["PongNoFrameskip-v4", "BreakoutNoFrameskip-v4", "SeaquestNoFrameskip-v4"]),
    "MiniGrid": ("minigrid", ["MiniGrid-DoorKey-8x8-v0", "MiniGrid-Dynamic-Obstacles-8x8-v0", "MiniGrid-MultiRoom-N4-S5-v0"]),
    "gymnasium-robotics": (
        "gymnasium_robotics",
        [
            *("FetchReach-v4", "FetchPush-v4", "FetchPickAndPlace-v4", "AdroitHandDoor-v1", "AdroitHandPen-v1"),
            *("AdroitHandRelocate-v1", "PointMaze_UMaze-v3", "AntMaze_UMaze-v5", "HandReach-v3", "FrankaKitchen-v1"),
        ],
    ),
    "dm_control": (
        "shimmy",
        [
            f"dm_control/{task}-v0"
            for task in ("cartpole-swingup", "cheetah-run", "walker-walk", "humanoid-stand", "reacher-easy")
        ],
    ),
}


def make(env_id: str) -> gym.Env[Any, Any]:
    """
    Make an env.

    :param env_id: Its id; with `` wind`` behind it, the lander in wind
    :return: The env; an Atari game in SB3's wrapper, with its sticky actions
    """
    name, _, wind = env_id.partition(" ")
    if "NoFrameskip" in name:
        return AtariWrapper(gym.make(name), action_repeat_probability=0.25, terminal_on_life_loss=False)
    env = gym.make(name, **({"enable_wind": True} if wind else {}))
    observations = env.observation_space
    is_nested = isinstance(observations, spaces.Dict) and any(isinstance(its, spaces.Dict) for its in observations.values())
    return FlattenObservation(env) if is_nested else env  # Stable-Baselines3 refuses nested dicts


def main() -> None:
    """Print a table of all families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES)[:6], help="families of envs")
    parser.add_argument("--steps", type=int, default=1500, help="steps of an env with each horizon (default: 1500)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    gym.logger.min_level = gym.logger.ERROR
    print(table_head(options.steps))
    used = versions()
    for family in options.families:
        package, env_ids = FAMILIES[family]
        try:
            gym.register_envs(importlib.import_module(package))
        except ImportError:
            print(f"| {family} | not installed here | | | |")
            continue
        used |= versions_of(package)
        for env_id in env_ids:
            n_steps = options.steps // SLOW.get(env_id, 1)
            name = f"{env_id} ({n_steps} steps)" if env_id in SLOW else env_id
            print(row(name, functools.partial(make, env_id), n_steps), flush=True)
            print(env_id, file=sys.stderr)
    print(f"\n{', '.join([*(f'{name} {version}' for name, version in used.items()), machine()])}")


if __name__ == "__main__":
    main()
