"""A few steps that show what types do not, before siblings are made."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.mujoco_state import refuse_changes
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
    :raises BranchingError: if the env itself did not the second time
    :raises ModelChangesError: if its step changes a model that members share
    """
    actions = RandomActions(env).draw(TRIAL_STEPS)
    model = engine.shared_contents()
    start = engine.save()
    try:
        truth = played(env, actions)
        refuse_changes(env, model, engine.shared_contents(), "step")
        engine.restore(start)
        try:
            same = difference(truth, played(EnvCopy(env, own_models=engine.own_models).env, actions)) is None
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
