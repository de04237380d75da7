"""
Whether siblings are exact, shown on the very env: in a fork of the process, where nothing can reach it.

From several states one sibling plays other actions, another one plays a plan, then the env plays the plan. All must see what a
twin sees, a fork of the process in which nobody else played. Where two twins differ, the difference is the env's own.
"""

import contextlib
import copy
import functools
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.copier import Survey
from sb3_hybrid_grpo.branching.engines import MemberState
from sb3_hybrid_grpo.branching.forked_env import Fork
from sb3_hybrid_grpo.branching.global_state import Surroundings, changed, digest, process_wide_generators
from sb3_hybrid_grpo.branching.native_types import GENERATORS, state_of
from sb3_hybrid_grpo.branching.wrapper_chain import generators_of_spaces, is_masked, lazy_holders

POINTS, STEPS, SECONDS = 4, 10, 1.0
"""From how many states an env plays, how many steps, and after how long no further state is looked for."""
LONGEST = 2000
"""Steps of an episode that is played to its end."""
ANSWER_WITHIN = 180.0
Play = list[dict[str, Any]]
"""What each step showed, by name."""


class Finding(NamedTuple):
    """What a check found."""

    difference: str | None = None
    """What siblings, or the env after them, played differently; None if nothing was seen."""
    own_difference: str | None = None
    """What two forks of one process played differently, to the last: a clock, random numbers without a seed."""
    error: str | None = None
    """What the env itself raised when it played, so that nothing could be shown."""
    noisy: bool = False
    """Whether steps draw random numbers."""
    reproducible: bool = True
    """Whether all twins played the same."""
    draws: tuple[str, ...] = ()
    """Process-wide generators that were drawn from and have no stream of the env's own."""
    changes_model: bool = False
    """Whether the env changes its MjModel."""
    lazy: tuple[int, ...] = ()
    """Which of :func:`lazy_holders` made a generator of random numbers while they played."""
    shared: tuple[str, ...] = ()
    """Which objects that other envs hold, too, changed."""


def examine(
    env: Any, make: Callable[[Any], Any], streams: MemberState | None, around: Surroundings, shared: dict[str, Any]
) -> Finding:
    """
    Check siblings of an env, which is afterwards what it was.

    :param env: The env, without recorders on top
    :param make: Makes a sibling of it, given an earlier one that is not needed any more
    :param streams: The env's own streams of random numbers
    :param around: What its code refers to
    :param shared: Objects that other envs hold, too, by name
    :return: What was found
    :raises BranchingError: if the env hangs or dies in a fork
    """
    check = _Check(env, make, streams, around, shared)
    fork = Fork(check.run, ANSWER_WITHIN, functools.partial(_show_progress, env))
    try:
        finding: Finding = fork.call()
    finally:
        fork.close()
    return finding


def _show_progress(env: Any, seconds: float) -> None:
    if seconds > 2 and sys.stderr is not None:
        bar = f"{'#' * min(int(4 * seconds), 40):.<40}"
        sys.stderr.write(f"\rChecking whether siblings of {env} are exact [{bar}] {seconds:.0f} s ")
        sys.stderr.flush()


class _Check:
    """The check itself; see :func:`examine`."""

    def __init__(self, env: Any, make: Any, streams: MemberState | None, around: Surroundings, shared: dict[str, Any]) -> None:
        self.env, self.make, self.streams, self.around, self.shared = env, make, streams, around, shared
        self.actions, self.survey, self.member_0 = RandomActions(env), Survey(env), Member0(env, streams)
        mine = [] if streams is None else [id(one.obj) for one in streams.shared]
        wide = [*process_wide_generators().values(), *around.spaces]
        self.watched = [one for one in wide if id(one.shared.obj) not in mine]
        self.resets = True
        self.siblings: list[Any] = [None, None, None]

    def run(self) -> Finding:
        end = time.perf_counter() + SECONDS
        holders, shared, wide = lazy_holders(self.env), self._digests_of_shared(), self._wide()
        finding = Finding()
        for point in range(POINTS):
            found = self._from_here(self.actions.draw(STEPS), self.actions.draw(STEPS), reset=self.resets and point == 0)
            finding = finding._replace(
                own_difference=found.own_difference,
                noisy=finding.noisy or found.noisy,
                reproducible=finding.reproducible and found.reproducible,
            )
            lazy = tuple(place for place, holder in enumerate(holders) if holder._np_random is not None)
            draws = tuple(one.name for one, before, now in zip(self.watched, wide, self._wide(), strict=True) if before != now)
            if lazy or draws or found.difference or found.error or found.changes_model:
                return found._replace(noisy=finding.noisy, lazy=lazy, draws=draws)
            if time.perf_counter() > end:
                break
        changes, now = self._play_to_the_end(end), self._digests_of_shared()
        return finding._replace(difference=_outside(changes), shared=tuple(one for one in shared if shared[one] != now[one]))

    def _wide(self) -> list[bytes | None]:
        objects = [(one.shared.obj, one.shared.save) for one in self.watched]
        made = [None if isinstance(obj, gym.Space) and obj._np_random is None else save(obj) for obj, save in objects]
        return [read_state(one) for one in made]

    def _digests_of_shared(self) -> dict[str, Any]:
        return {name: digest(state_of(one) if isinstance(one, GENERATORS) else one) for name, one in self.shared.items()}

    def _from_here(self, plan: list[Any], other: list[Any], reset: bool) -> Finding:
        """Play from the state in which the env is."""
        twins = [Fork(functools.partial(self._of_twin, reset)) for _ in range(2)]
        twins[0].send(plan)
        self.siblings = [self.make(one) for one in self.siblings]
        is_forked = self.siblings[0].kind == "forked"
        _safely_played(self.siblings[0], other)
        seen = _safely_played(self.siblings[1], plan, reset)
        outside = {} if is_forked else self.around.digests()
        _safely_played(self.siblings[2], other)
        numbers, models = self._numbers(of_spaces=False), self._models()
        truth, truths_numbers, error = twins[0].receive()
        if error is not None:
            return Finding(error=error)
        played_last = _safely_played(self.member_0, plan)
        noisy = numbers != self._numbers(of_spaces=False)
        played_last += _safely_played(self.member_0, [], reset)
        # these actions were played before: a counter goes on every time, a cache has had all that it needed
        changes = [] if is_forked else changed(outside, self.around.digests())
        found = difference(truth, seen) or difference(truth, played_last)
        if found is None and truths_numbers != self._numbers():
            found = "the state of its random numbers: a cache outside of the env holds what siblings drew"
        if found is not None:
            again, its_numbers, _ = twins[1].call(plan)
            if difference(truth, again) is not None or its_numbers != truths_numbers:
                in_steps = difference(truth[: len(truth) - reset], again[: len(again) - reset])
                self.resets = False
                return Finding(own_difference=in_steps, reproducible=in_steps is None, noisy=noisy)
        if self._models() != models:
            return Finding(changes_model=True, noisy=noisy)
        if truth and (truth[-1].get("terminated") or truth[-1].get("truncated")):
            self.env.reset()
        parts = [f"played the same actions differently: {found}" if found else None, _outside(changes)]
        return Finding(difference="; ".join(filter(None, parts)) or None, noisy=noisy)

    def _of_twin(self, reset: bool, plan: list[Any]) -> tuple[Play, Any, str | None]:
        try:
            return played(self.member_0, plan, reset), self._numbers(), None
        except BaseException as error:  # an interrupt, too, is the env's own: Ctrl-C is for the parent
            return [], None, f"{type(error).__name__}: {error}"

    def _numbers(self, of_spaces: bool = True) -> list[bytes | None]:
        """The states of the generators of the env, and of its spaces if so asked."""
        streams = [] if self.streams is None else [read_state(one) for one in self.streams.states]
        with contextlib.suppress(Exception):  # what forks need not be copied
            left_out = set() if of_spaces else generators_of_spaces(self.env)
            return [read_state(state_of(one)) for one in self.survey()[0] if id(one) not in left_out] + streams
        return streams

    def _models(self) -> list[bytes]:
        """Digests of the MjModels that the env holds."""
        with contextlib.suppress(Exception):
            return [b"".join(_model_parts(model, model.opt, model.stat)) for model in self.survey()[1]]
        return []

    def _play_to_the_end(self, end: float) -> list[str]:
        """Let two siblings play the same episode to its end, if the time allows, and see what that changes outside."""
        if time.perf_counter() > end or self.siblings[0].kind == "forked":  # what a fork changes is its own
            return []
        actions, siblings = self.actions.draw(LONGEST), [self.make(one) for one in self.siblings[:2]]
        first = _safely_played(siblings[0], actions, end=end)
        outside = self.around.digests()
        _safely_played(siblings[1], actions[: len(first)])
        return changed(outside, self.around.digests())


def read_state(state: Any) -> bytes | None:
    """A digest of the state of a generator of random numbers."""
    return digest(state.numpy() if hasattr(state, "numpy") else state)


def _outside(changes: list[str]) -> str | None:
    return f"playing changes {', '.join(changes[:5])}, outside of the env" if changes else None


def _model_parts(*parts: Any) -> list[bytes]:
    values = [getattr(part, name, None) for part in parts for name in dir(part) if not name.startswith("_")]
    return [digest(np.asarray(one)) or b"" for one in values if isinstance(one, np.ndarray | int | float)]


class Member0:
    """The env itself, with its streams if it has some, as what steps like a sibling."""

    def __init__(self, env: Any, streams: MemberState | None) -> None:
        self.env, self.streams = env, contextlib.nullcontext() if streams is None else streams
        self.get_wrapper_attr = env.get_wrapper_attr

    def step(self, action: Any) -> Any:
        with self.streams:
            return self.env.step(action)

    def reset(self, **keywords: Any) -> Any:
        with self.streams:
            return self.env.reset(**keywords)


def played(env: Any, actions: Sequence[Any], reset: bool = False, end: float = np.inf) -> Play:
    """Play some actions, until an episode ends."""
    seen: Play = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(chosen(env, action))
        seen.append(shown(observation, reward, terminated, truncated))
        if terminated or truncated or time.perf_counter() > end:
            break
    if reset:
        seen.append({"observation after a reset": copy.deepcopy(env.reset()[0])})
    return seen


def shown(observation: Any, reward: Any, terminated: Any, truncated: Any, *_: Any) -> dict[str, Any]:
    """What a step showed, by name, to be compared later."""
    seen = {"observation": copy.deepcopy(observation), "reward": float(np.asarray(reward).reshape(-1)[0])}
    return seen | {"terminated": bool(terminated), "truncated": bool(truncated)}


def _safely_played(env: Any, actions: Sequence[Any], reset: bool = False, end: float = np.inf) -> Play:
    try:
        return played(env, actions, reset, end)
    except BaseException as error:
        return [{"exception": repr(error)}]


class ValidAction:
    """An action that is drawn where it is to be taken, of those that ``action_masks()`` allows; the same for the same mask."""

    def __init__(self, space: gym.Space[Any], seed: int) -> None:
        self.space, self.seed = space, seed

    def __call__(self, env: Any) -> Any:
        return _counted_from_0(self.space, self._sample(np.asarray(env.get_wrapper_attr("action_masks")()).astype(np.int8)))

    def _sample(self, mask: np.ndarray) -> Any:
        self.space.seed(self.seed)
        if isinstance(self.space, spaces.MultiDiscrete):
            parts = np.split(mask.reshape(-1), np.cumsum(self.space.nvec.reshape(-1))[:-1])
            return self.space.sample(mask=tuple(parts))
        if isinstance(self.space, spaces.MultiBinary):
            zero, one = mask.reshape(-1, 2).T
            return self.space.sample(mask=np.where(zero & one, 2, one).astype(np.int8).reshape(self.space.shape))
        return self.space.sample(mask=mask)


def _counted_from_0(space: gym.Space[Any], action: Any) -> Any:
    """As a policy counts them, whatever the ``start`` of a space."""
    return action - space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else action


def chosen(env: Any, action: Any) -> Any:
    """The action to take where an env stands, one of its own: an env may change it in place."""
    return action(env) if isinstance(action, ValidAction) else copy.copy(action)


class RandomActions:
    """
    Actions drawn at random, the same for every env; valid ones, where the env has ``action_masks()``. The generator of the
    env's own space is not touched.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(0)
        self.masked, self.drawn = is_masked(env), 0

    def draw(self, number: int) -> list[Any]:
        """As many actions, for :func:`chosen`."""
        if not self.masked:
            return [_counted_from_0(self.space, self.space.sample()) for _ in range(number)]
        self.drawn += number
        return [ValidAction(self.space, seed) for seed in range(self.drawn - number, self.drawn)]


def difference(truth: Play, again: Play) -> str | None:
    """Compare two plays bit for bit: the first difference, with field, step and values, or None."""
    for number, (one, other) in enumerate(zip(truth, again, strict=False), start=1):
        if "exception" in other:
            return f"it raised {other['exception']} at step {number}"
        if one.keys() != other.keys():
            return f"once the episode ended at step {number - 1}, and once it did not"
        for name in one:
            found = _first_difference(name, one[name], other[name])
            if found is not None:
                return f"{found} at step {number}"
    if len(truth) == len(again):
        return None
    return f"once the episode ended at step {min(len(truth), len(again))}, and once it did not"


def _first_difference(name: str, one: Any, other: Any) -> str | None:
    if pickle.dumps(one) == pickle.dumps(other):
        return None
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [(f"{name}[{key!r}]", one[key], other[key]) for key in one]
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        parts = [(f"{name}[{place}]", *both) for place, both in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape and (one != other).any():
        unequal = np.argwhere(one != other)
        place = tuple(unequal[0].tolist())
        return f"{name}{list(place) or ''}: {one[place]} became {other[place]}"
    else:
        return f"{name}: {one!r} became {other!r}"
    return next((found for part in parts if (found := _first_difference(*part)) is not None), None)
