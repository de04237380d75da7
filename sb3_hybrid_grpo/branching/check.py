"""Whether an engine is exact on this very env: shown by playing, in a fork of the process, where nothing can reach the env."""

import copy
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.forks import ANSWER_WITHIN as A_STEP_WITHIN
from sb3_hybrid_grpo.branching.forks import DeadForkError, Fork, ForkedEnv, ForkEngine, HungForkError, can_fork
from sb3_hybrid_grpo.branching.inplace import InPlaceEngine, NotInPlaceError
from sb3_hybrid_grpo.branching.mujoco_state import refuse_changes
from sb3_hybrid_grpo.branching.outside import changed, global_generators, outside_values
from sb3_hybrid_grpo.branching.plays import Play, RandomActions, difference, has_ended, played
from sb3_hybrid_grpo.branching.protocol import Engine
from sb3_hybrid_grpo.errors import BranchingError

POINTS, STEPS = 4, 8
"""From how many states an env plays, and how many steps."""
SECONDS = 0.15
"""After which no further state is looked for."""
ANSWER_WITHIN = 20.0


class Finding(NamedTuple):
    """What a check found."""

    difference: str | None = None
    """What differed; None if the engine is exact as far as can be seen."""
    copies_differ: bool = False
    """Whether a copy of the env, where one can be made, played something else than the env."""
    error: str | None = None
    """What the env itself raised when it played, so that nothing could be shown."""


def find_difference(env: gym.Env[Any, Any], engine: Engine, resets: bool) -> Finding:
    """
    Check that an env plays the same again after it was put back, also for a sibling that was put aside in between, and that it
    draws no random numbers from outside of itself. The env is afterwards what it was.

    :param env: The env
    :param engine: Its engine
    :param resets: Whether siblings reset by themselves, so that the check may
    :return: What was found
    :raises ModelChangesError: for an env that changes a model that members share
    """
    if isinstance(engine, ForkEngine):
        return _in_fork(functools.partial(_forks_differ, env), 4 * STEPS * A_STEP_WITHIN)
    try:
        if can_fork():
            return _in_fork(functools.partial(_plays_differ, env, engine, resets), ANSWER_WITHIN)
    except HungForkError:  # as a fork may that renders, or waits for a thread; the env itself need not
        pass
    except DeadForkError as death:
        try:  # is it the branching that kills it, or being a fork?
            _in_fork(functools.partial(_plays, env), ANSWER_WITHIN)
            return Finding(str(death))
        except (DeadForkError, HungForkError):
            pass
    whole = InPlaceEngine(env, own_models=True)  # what is found out may be that the env changes its models
    origin = whole.save()
    try:
        return _plays_differ(env, engine, resets)
    finally:
        whole.restore(origin)


def _in_fork(check: Callable[[], Finding], within: float) -> Finding:
    """Check in a fork of the process, where an env may crash and be left anywhere."""

    def answer() -> tuple[Finding, BranchingError | None]:
        try:
            return check(), None
        except NotInPlaceError as error:  # something that the env did not hold before it played
            return Finding(error.reason), None
        except BranchingError as error:
            return Finding(), error

    fork = Fork(answer, within)
    try:
        found: Finding
        found, refusal = fork.call()
    except (HungForkError, DeadForkError):
        raise
    except RuntimeError as error:
        return Finding(str(error))
    finally:
        fork.close()
    if refusal is not None:
        raise refusal
    return found


def _plays_differ(env: gym.Env[Any, Any], engine: Engine, resets: bool) -> Finding:
    """Play from several states, and again from the same ones."""
    actions, end = RandomActions(env), time.perf_counter() + SECONDS
    copies_differ, code = False, engine.code()
    for point in range(1, POINTS + 1):
        start, plan, other = engine.save(), actions.draw(STEPS), actions.draw(STEPS)
        reset = resets and point == 1
        generators = global_generators()
        try:
            truth = _watched(env, engine, plan, reset) if point == 1 else _played(env, plan, reset)
        except BranchingError:
            raise
        except Exception as error:  # the training may meet it too, and show it as it is
            return Finding(error=repr(error))
        engine.restore(start)
        lived = played(env, other[: STEPS // 2])
        aside = engine.resave(start)
        engine.restore(start)
        found = difference(truth, _played(env, plan, reset))
        engine.restore(aside)
        lived += _played(env, [] if has_ended(lived) else other[STEPS // 2 :], reset)
        before = outside_values(code) if point == 1 else {}
        engine.restore(start)
        once = _played(env, other, reset)
        found = found or difference(once, lived)
        drawn = changed(generators, global_generators())
        # these actions were played before: a counter goes on every time, a cache has had all that it needed
        changes = changed(before, outside_values(code)) if point == 1 else []
        engine.restore(start)
        if found is not None or drawn or changes:
            return Finding(_what_differs(found, drawn, changes))
        copies_differ |= _copy_differs(env, engine, plan, truth)
        if time.perf_counter() > end or has_ended(played(env, plan[:point])):
            break
    return Finding(copies_differ=copies_differ)


def _what_differs(found: str | None, drawn: list[str], changes: list[str]) -> str:
    """Say what was found; what lies outside of the env may show long after the check."""
    parts = [] if found is None else [f"put back to where it was, it played the same actions differently: {found}"]
    parts += [f"playing draws from {' and '.join(drawn)}, outside of the env"] if drawn else []
    parts += [f"playing changes {', '.join(changes)}, outside of the env"] if changes else []
    return "; ".join(parts)


def _copy_differs(env: gym.Env[Any, Any], engine: Engine, actions: list[Any], truth: Play) -> bool:
    try:
        copied = EnvCopy(env, own_models=engine.own_models)
    except Exception:  # it need not be possible
        return False
    try:
        again = played(copied.env, actions)
    except Exception:
        return True
    return difference(truth[: len(again)], again) is not None


def _plays(env: gym.Env[Any, Any]) -> Finding:
    """Play, and nothing else."""
    played(env, RandomActions(env).draw(STEPS))
    return Finding()


def _forks_differ(env: gym.Env[Any, Any]) -> Finding:
    """Play in forks, then in the env."""
    actions = RandomActions(env)
    plan, other = actions.draw(STEPS), actions.draw(STEPS)
    siblings = [ForkedEnv(env), ForkedEnv(env)]
    found = difference(played(siblings[1], other), played(ForkedEnv(env), other))
    again = played(siblings[0], plan)
    found = found or difference(played(env, plan), again)
    return Finding(None if found is None else f"in a fork, it played the same actions differently: {found}")


def _played(env: gym.Env[Any, Any], actions: list[Any], reset: bool) -> Play:
    """Play, and reset."""
    seen = played(env, actions)
    if reset:
        seen.append({"observation after a reset": copy.deepcopy(env.reset()[0])})
    return seen


def _watched(env: gym.Env[Any, Any], engine: Engine, actions: list[Any], reset: bool) -> Play:
    """The same, with an eye on what members share of a model."""
    before = engine.shared_contents()
    seen = played(env, actions)
    refuse_changes(env, before, engine.shared_contents(), "step")
    if reset:
        seen += _played(env, [], reset)
        refuse_changes(env, before, engine.shared_contents(), "reset")
    return seen
