"""An env that is branched at every step, or lives with siblings, against twins that never are, bit for bit."""

import copy
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo import make_branchable
from sb3_hybrid_grpo.branching import check_branching
from sb3_hybrid_grpo.branching.forked_env import Fork, ForkedEnv
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper, SiblingFailure
from sb3_hybrid_grpo.branching.wrapper_chain import layers_of

MakeEnv = Callable[[], gym.Env[Any, Any]]
N_SIBLINGS = 3


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


class Twin:
    """
    An env that nobody branches, in a process of its own.

    :param make_env: Makes the env
    """

    def __init__(self, make_env: MakeEnv) -> None:
        made: list[gym.Env[Any, Any]] = []
        forks: dict[int, ForkedEnv] = {}

        def call(method: str, *arguments: Any) -> Any:
            if not made:
                made.append(make_env())
            if method == "reset":
                return made[0].reset(seed=arguments[0])[0]
            if method == "fork":
                forks[arguments[0]] = ForkedEnv(made[0], forks.get(arguments[0]))
                return None
            return (made[0] if method == "step" else forks[arguments[1]]).step(arguments[0])[:4]

        self._call = Fork(call).call

    def reset(self, seed: int | None = None) -> Any:
        """
        :param seed: The seed
        :return: The observation
        """
        return self._call("reset", seed)

    def step(self, action: Any) -> Any:
        """
        :param action: The action
        :return: What it led to
        """
        return self._call("step", action)

    def fork(self, member: int) -> None:
        """
        Fork the process, as it is now.

        :param member: Which sibling's truth the fork will be; its earlier one ends
        """
        self._call("fork", member)

    def step_fork(self, action: Any, member: int) -> Any:
        """
        :param action: The action
        :param member: In which fork it is taken
        :return: What it led to
        """
        return self._call("step_fork", action, member)


def branchable(make_env: MakeEnv) -> tuple[gym.Env[Any, Any], Any, gym.Space[Any]]:
    """
    Make an env that can be branched.

    :param make_env: Makes the env
    :return: The env with its recorders; the layer that branches it; a space to draw actions from, not the env's own
    """
    env = make_branchable(make_env())
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    return env, next(layer for layer in layers_of(env) if isinstance(layer, BranchingWrapper)), space


def differs(make_env: MakeEnv, horizon: int, n_steps: int) -> str:
    """
    Let an env live with siblings beside a twin without.

    :param make_env: Makes the env
    :param horizon: Steps between two forks
    :param n_steps: Steps of the env
    :return: What differed first; empty if nothing did
    """
    twin = Twin(make_env)  # before the env, so that both find the process as it is now
    env, branching, space = branchable(make_env)
    if exact(env.reset(seed=1)[0]) != exact(twin.reset(seed=1)):
        return "two resets with one seed"
    refusal = branching.check_siblings()
    if refusal is not None:
        return str(refusal.error)
    age, forks = 0, np.ones(N_SIBLINGS, bool)
    for step in range(n_steps):
        action = space.sample()
        taken = np.array([action] + [space.sample() for _ in range(N_SIBLINGS - 1)])
        others = range(1, N_SIBLINGS) if horizon > 1 or step % 16 == 0 else ()
        for m in others:
            if forks[m]:
                twin.fork(m)
        seen = branching.step_siblings(taken, forks.tolist())
        if isinstance(seen, SiblingFailure):
            return f"step {step}: {seen.error}"
        result = env.step(action)
        if outcome(*result) != outcome(*twin.step(action)):
            return f"member 0 at step {step}"
        for m in (0, *others):
            truth = twin.step_fork(taken[m], m) if m else result
            if outcome(seen.observations[m], seen.rewards[m], seen.terminated[m], seen.truncated[m]) != outcome(*truth):
                return f"{f'member {m + 1}' if m else 'its mirror'} at step {step}, {age} steps after the fork of all"
        ended = result[2] or result[3]
        if ended:
            if exact(env.reset()[0]) != exact(twin.reset()):
                return f"the reset after step {step}"
        age += 1
        whole = ended or age == horizon
        age = 0 if whole else age
        forks = np.logical_or(whole, np.logical_or(seen.terminated, seen.truncated))
    return ""


def row(name: str, make_env: MakeEnv, n_steps: int) -> str:
    """
    Examine an env.

    :param name: What it is called
    :param make_env: Makes it
    :param n_steps: Steps with each horizon
    :return: A row of the table
    """
    start = time.perf_counter()
    try:
        report = check_branching(make_env())
        if not report.is_exact:
            return f"| {name} | refused | {' '.join(report.refusal.split())} | | |"
        found = [differs(make_env, horizon, n_steps) for horizon in (1, 64)]
        verdicts = " | ".join(one or "exact" for one in found)
    except Exception as error:  # the env's own: an examination of all goes on
        return f"| {name} | fails | {type(error).__name__}: {' '.join(str(error).split())[:200]} | | |"
    engine = f"forked ({'; '.join(report.reasons)})" if report.engine == "forked" else report.engine
    return f"| {name} | {engine} | {verdicts} | {time.perf_counter() - start:.0f} s |"


def versions_of(package: str) -> dict[str, str]:
    """
    :param package: The name of a package that can be imported
    :return: The versions of what installed it, and of mujoco if it is installed
    """
    distributions = importlib.metadata.packages_distributions().get(package, [package])
    simulators = ["mujoco"] if importlib.util.find_spec("mujoco") else []
    return {name: importlib.metadata.version(name) for name in (*distributions, *simulators)}


def table_head(n_steps: int) -> str:
    """
    :param n_steps: Steps with each horizon
    :return: The title, and the head of the table
    """
    return (
        f"# Branching against twins, {n_steps} steps, {N_SIBLINGS} siblings\n\n"
        "| env | siblings are | forked at every step | forked every 64 steps | took |\n"
        "|---|---|---|---|---|"
    )
