"""A few steps that show what types do not, before siblings are made."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.plays import RandomActions, difference, played
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
    actions = RandomActions(env).draw(TRIAL_STEPS)
    model = model_contents(env)
    start = engine.save()
    try:
        truth = played(env, actions)
        engine.restore(start)
        refuse_changes(env, model, "step")
        try:
            same = difference(truth, played(EnvCopy(env).env, actions)) is None
        except Exception:  # of whatever kind: the env itself has just played the same
            same = False
        again = played(env, actions)
    finally:
        engine.restore(start)
    found = difference(truth, again)
    if found is not None:
        raise not_exact(env, [f"put back to where it was, it played the same actions differently: {found}"])
    return same


def not_exact(env: gym.Env[Any, Any], reasons: Sequence[str]) -> BranchingError:
    """
    Say why an env cannot be branched.

    :param env: The env
    :param reasons: What was found, engine by engine
    :return: The error
    """
    return BranchingError(
        f"{env} cannot be branched: {'; '.join(reasons)}. It keeps state outside of itself (class attributes, module globals, "
        "the global np.random, another process), reads a clock, or holds an object whose registered engine does not save all "
        "of it. Move that state into the env and draw random numbers from self.np_random, give the env the two methods of "
        "sb3_hybrid_grpo.branching.SupportsBranching, or use n_samples=1 (plain PPO)."
    )


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
