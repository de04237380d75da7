"""A few steps that show what types do not, before siblings are made."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.protocol import Engine
from sb3_hybrid_grpo.errors import BranchingError

TRIAL_STEPS = 4
"""Steps of a trial. An env takes three times as many, once."""


def copies_are_exact(env: gym.Env[Any, Any], engine: Engine) -> bool:
    """
    Try it: the env, a copy, and the env again play the same few actions from here. The env is put back in place.

    :param env: The env
    :param engine: Its engine
    :return: Whether the copy saw the same, bit for bit
    :raises BranchingError: if the env itself did not the second time, or if its step changes what members share
    """
    space = copy.deepcopy(env.action_space)  # the env's own may be drawn from by the env
    space.seed(0)
    actions = [space.sample() for _ in range(TRIAL_STEPS)]
    model = model_contents(env)
    start = engine.save()
    try:
        truth = _played(env, actions)
        engine.restore(start)
        refuse_changes(env, model, "step")
        try:
            same = _played(EnvCopy(env).env, actions) == truth
        except Exception:  # of whatever kind: the env itself has just played the same
            same = False
        again = _played(env, actions)
    finally:
        engine.restore(start)
    if again != truth:
        raise BranchingError(
            f"{env} cannot be branched: put back to where it was, it played the same actions differently. It keeps state "
            "outside of itself (class attributes, module globals, the global np.random, another process), reads a clock, or "
            "holds an object whose registered engine does not save all of it. Move that state into the env and draw random "
            "numbers from self.np_random, give the env the two methods of sb3_hybrid_grpo.branching.SupportsBranching, or use "
            "n_samples=1 (plain PPO)."
        )
    return same


def model_contents(env: gym.Env[Any, Any]) -> dict[str, bytes]:
    """
    Read the MjModel of a MuJoCo env, which all members share.

    :param env: The env
    :return: The contents of its arrays and options by name; nothing for another env
    """
    model = getattr(env.unwrapped, "model", None)
    if type(model).__name__ != "MjModel":
        return {}
    contents = {}
    for prefix, part in (("", model), ("opt.", model.opt)):  # type: ignore[union-attr]
        for name in dir(part):
            value = None if name.startswith("_") else getattr(part, name, None)
            if isinstance(value, np.ndarray | int | float):
                contents[prefix + name] = np.asarray(value).tobytes()
    return contents


def refuse_changes(env: gym.Env[Any, Any], before: dict[str, bytes], when: str) -> None:
    """
    Refuse an env that changes its MjModel where other members would feel it.

    :param env: The env
    :param before: What :func:`model_contents` was before
    :param when: The name of the method that was called since
    :raises BranchingError: if it has changed
    """
    after = model_contents(env) if before else {}
    changed = [name for name in before if after.get(name) != before[name]]
    if changed:
        raise BranchingError(
            f"{env} cannot be branched: its {when}() changes MjModel.{changed[0]}, and the model is shared by all members. "
            'Change the model in reset() alone (and with a branch_horizon that is not "free" or "auto"), apply forces '
            "through MjData (xfrc_applied, qfrc_applied), or use n_samples=1 (plain PPO)."
        )


def _played(env: gym.Env[Any, Any], actions: Sequence[Any]) -> list[bytes]:
    """What an env shows when it plays some actions, until an episode ends."""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append(pickle.dumps((observation, float(reward), bool(terminated), bool(truncated))))
        if terminated or truncated:
            break
    return seen
