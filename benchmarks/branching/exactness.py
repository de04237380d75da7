"""
Shows that branching is exact, env by env: an env that is branched at every step, or lives with siblings, against a twin that
never is, bit for bit, through ends of episodes.

    python benchmarks/branching/exactness.py > benchmarks/branching/exactness.md
    pip install mujoco==3.6.0 gymnasium-robotics "shimmy[dm-control]"  # mujoco 4 breaks some of these
    cd benchmarks/branching && python exactness.py --families gymnasium-robotics dm_control > exactness_mujoco_3.6.md

Member 0 has three siblings. Where they fork from it, the first takes the same actions and must see the same, and the others
random ones; where they are free, each resets by itself and has a twin of its own. Families whose packages are not installed
are said to be missing.
"""

import argparse
import importlib
import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.atari_wrappers import AtariWrapper

from sb3_hybrid_grpo import make_branchable
from sb3_hybrid_grpo.branching import check_branching
from sb3_hybrid_grpo.branching.answers import SiblingFailure
from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.cli import versions

N_SIBLINGS = 3
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


def exact(value: Any) -> Any:
    """
    Something that equals another one's only if both are the same to the last bit.

    :param value: An observation, a reward or a flag
    :return: Types, shapes and bytes
    """
    if isinstance(value, dict):
        return {key: exact(its) for key, its in value.items()}
    if isinstance(value, list):
        return [exact(its) for its in value]
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def outcome(observation: Any, reward: Any, terminated: Any, truncated: Any, *_: Any) -> Any:
    """
    What a step led to, in a form that shows every bit.

    :return: The same for a sibling as for an env that did the same
    """
    return exact([observation, float(reward), bool(terminated), bool(truncated)])


def differs(make_env: Callable[[], gym.Env[Any, Any]], horizon: int, n_steps: int) -> str:
    """
    Let an env live with siblings beside a twin without.

    :param make_env: Makes the env
    :param horizon: Steps between two forks
    :param n_steps: Steps of the env
    :return: What differed first; empty if nothing did
    """
    env, twin = make_branchable(make_env()), make_env()
    branching: Any = env
    space = twin.action_space
    space.seed(0)
    if exact(env.reset(seed=1)[0]) != exact(twin.reset(seed=1)[0]):
        return "two resets with one seed"
    branching.check_siblings(False)
    age, forks = 0, np.ones(N_SIBLINGS, bool)
    for step in range(n_steps):
        action = space.sample()
        taken = np.array([action] + [space.sample() for _ in range(N_SIBLINGS - 1)])
        seen = branching.step_siblings(taken, forks, age + 1 < horizon)
        if isinstance(seen, SiblingFailure):
            return f"step {step}: {seen.error}"
        result = env.step(action)
        if outcome(*result) != outcome(*twin.step(action)):
            return f"member 0 at step {step}"
        if outcome(seen.observations[0], seen.rewards[0], seen.terminated[0], seen.truncated[0]) != outcome(*result):
            return f"its mirror at step {step}, {age} steps after the fork"
        ended = result[2] or result[3]
        if ended:
            if exact(env.reset()[0]) != exact(twin.reset()[0]):
                return f"the reset after step {step}"
        age += 1
        whole = ended or age == horizon
        age = 0 if whole else age
        forks = np.logical_or(whole, np.logical_or(seen.terminated, seen.truncated))
    return ""


def free_differs(make_env: Callable[[], gym.Env[Any, Any]], n_steps: int) -> str:
    """
    Let free siblings live beside an env, each beside a twin that is an env of its own.

    :param make_env: Makes the env
    :param n_steps: Steps of the env
    :return: What differed first; empty if nothing did
    """
    env, twins = make_branchable(make_env()), [make_env() for _ in range(N_SIBLINGS + 1)]
    branching: Any = env
    space = twins[0].action_space
    space.seed(0)
    env.reset(seed=1)
    branching.check_siblings(True)
    firsts = branching.reset_siblings([*range(2, N_SIBLINGS + 2)])
    if isinstance(firsts, SiblingFailure):
        return f"the first reset: {firsts.error}"
    for twin in twins[1:]:  # what a sibling began with; some of it may outlast a reset, as the order of Box2D's tree
        twin.reset(seed=1)
    alone = [twin.reset(seed=seed)[0] for seed, twin in enumerate(twins, start=1)]
    if exact(firsts) != exact(alone[1:]):
        return "the first reset"
    for step in range(n_steps):
        actions = [space.sample() for _ in twins]
        seen = branching.step_siblings(np.array(actions[1:]), np.zeros(N_SIBLINGS, bool), True, True)
        if isinstance(seen, SiblingFailure):
            return f"step {step}: {seen.error}"
        results = [
            env.step(actions[0])[:4],
            *zip(seen.observations, seen.rewards, seen.terminated, seen.truncated, strict=True),
        ]
        for member, (twin, result) in enumerate(zip(twins, results, strict=True)):
            expected = twin.step(actions[member])
            if outcome(*result) != outcome(*expected):
                return f"member {member} at step {step}"
            if expected[2] or expected[3]:
                first = seen.resets[member - 1] if member else env.reset()[0]
                if exact(first) != exact(twin.reset()[0]):
                    return f"the reset of member {member} after step {step}"
    return ""


def row(env_id: str, n_steps: int) -> str:
    """
    Examine an env.

    :param env_id: Its id
    :param n_steps: Steps with each horizon
    :return: A row of the table
    """
    start, n_steps = time.perf_counter(), n_steps // SLOW.get(env_id, 1)
    name = f"{env_id} ({n_steps} steps)" if env_id in SLOW else env_id
    try:
        report = check_branching(make(env_id))
        if not report.is_exact:
            return f"| {name} | refused | {' '.join(report.refusal.split())} | | | |"
        found = [
            *(differs(lambda: make(env_id), horizon, n_steps) for horizon in (1, 64)),
            free_differs(lambda: make(env_id), n_steps),
        ]
        verdicts = " | ".join(one or "exact" for one in found)
    except Exception as error:  # the env's own: an examination of all goes on
        return f"| {name} | fails | {type(error).__name__}: {' '.join(str(error).split())[:200]} | | | |"
    return f"| {name} | {report.engine} | {verdicts} | {time.perf_counter() - start:.0f} s |"


def main() -> None:
    """Print a table of all families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES)[:6], help="families of envs")
    parser.add_argument("--steps", type=int, default=1500, help="steps of an env with each horizon (default: 1500)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    gym.logger.min_level = gym.logger.ERROR
    print(f"# Branching against twins, {options.steps} steps, {N_SIBLINGS} siblings\n")
    print(
        "| env | siblings that live on are | forked at every step | forked every 64 steps | free | took |\n"
        "|---|---|---|---|---|---|"
    )
    used = dict(versions())
    for family in options.families:
        package, env_ids = FAMILIES[family]
        try:
            gym.register_envs(importlib.import_module(package))
        except ImportError:
            print(f"| {family} | not installed here | | | | |")
            continue
        for distribution in (*importlib.metadata.packages_distributions().get(package, [package]), "mujoco"):
            used[distribution] = importlib.metadata.version(distribution)
        for env_id in env_ids:
            print(row(env_id, options.steps), flush=True)
            print(env_id, file=sys.stderr)
    print(f"\n{', '.join([*(f'{name} {version}' for name, version in used.items()), machine()])}")


if __name__ == "__main__":
    main()
