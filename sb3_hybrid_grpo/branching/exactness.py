"""
Whether siblings are exact, shown on the very env: in a fork of the process, where nothing can reach it.

From several states one sibling plays other actions, another one plays a plan, then the env plays the plan. All must see what a
twin sees, a fork of the process in which nobody else played. Where two twins differ, the difference is the env's own.
"""

import contextlib
import copy
import dataclasses
import functools
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.engines import MemberState
from sb3_hybrid_grpo.branching.forked_env import Fork
from sb3_hybrid_grpo.branching.global_state import Surroundings, digest, process_wide_generators
from sb3_hybrid_grpo.branching.native_types import GENERATORS, state_of
from sb3_hybrid_grpo.branching.wrapper_chain import generator_of, generators_of_spaces, lazy_holders

POINTS, STEPS, SECONDS = 4, 10, 1.0
"""From how many states an env plays, how many steps, and after how long no further state is looked for."""
LONGEST = 2000
"""Steps of an episode that is played to its end."""
ANSWER_WITHIN = 180.0
Play = list[dict[str, Any]]
"""What each step showed, by name."""


@dataclasses.dataclass
class Finding:
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
        self.env, self.make, self.around, self.shared = env, make, around, shared
        self.member_0 = Member0(env, streams)
        mine = [] if streams is None else [id(one.obj) for one in streams.shared]
        wide = [*process_wide_generators().values(), *around.spaces]
        self.watched = [one for one in wide if id(one.shared.obj) not in mine]
        self.siblings: list[Any] = [None, None, None]
        self.reuse: Any = None
        self.found = Finding()

    def run(self) -> Finding:
        found, end = self.found, time.perf_counter() + SECONDS
        holders, shared, wide = lazy_holders(self.env), self._digests_of_shared(), self._wide()
        for point in range(POINTS):
            self._play_from_here(point)
            found.lazy = tuple(place for place, holder in enumerate(holders) if generator_of(holder) is not None)
            found.draws = tuple(
                one.name for one, before, now in zip(self.watched, wide, self._wide(), strict=True) if before != now
            )
            if found.lazy or found.draws or found.difference or found.error:
                return found
            if time.perf_counter() > end:
                break
        else:
            found.difference = self._play_to_the_end(end)
        now = self._digests_of_shared()
        found.shared = tuple(one for one in shared if shared[one] != now[one])
        return found

    def _wide(self) -> list[bytes | None]:
        objects = [(one.shared.obj, one.shared.save) for one in self.watched]
        made = [None if isinstance(obj, gym.Space) and generator_of(obj) is None else save(obj) for obj, save in objects]
        return [read_state(one) for one in made]

    def _digests_of_shared(self) -> dict[str, Any]:
        return {name: digest(state_of(one) if isinstance(one, GENERATORS) else one) for name, one in self.shared.items()}

    def _play_from_here(self, point: int) -> None:
        """Play from the state in which the env is; from the first one with a reset at the end."""
        found, reset, plan, other = self.found, point == 0, 2 * point, 2 * point + 1
        twins = [Fork(functools.partial(self._of_twin, plan, reset)) for _ in range(2)]
        twins[0].send()
        self.siblings = [self.make(one) for one in self.siblings]
        is_forked = self.siblings[0].kind == "forked"
        self._play(self.siblings[0], other)
        seen = self._play(self.siblings[1], plan, reset=reset)
        outside = {} if is_forked else self.around.digests()
        self._play(self.siblings[2], other)
        numbers = self._numbers(self.member_0, of_spaces=False)
        truth, truths_numbers = twins[0].receive()
        if truth and "exception" in truth[-1]:
            found.error = truth[-1]["exception"]
            return
        played_last = self._play(self.member_0, plan)
        found.noisy |= numbers != self._numbers(self.member_0, of_spaces=False)
        played_last += self._play(self.member_0, plan, steps=0, reset=reset)
        # these actions were played before: a counter goes on every time, a cache has had all that it needed
        changes = None if is_forked else _outside(outside, self.around.digests())
        differs = difference(truth, seen) or difference(truth, played_last)
        if differs is None and truths_numbers != self._numbers(self.member_0):
            differs = "the state of its random numbers: a cache outside of the env holds what siblings drew"
        found.own_difference = None
        if differs is not None:
            again, its_numbers = twins[1].call()
            if difference(truth, again) is not None or its_numbers != truths_numbers:
                found.own_difference = difference(truth[: len(truth) - reset], again[: len(again) - reset])
                found.reproducible &= found.own_difference is None
                return
        if truth and (truth[-1].get("terminated") or truth[-1].get("truncated")):
            self.env.reset()
        parts = [f"played the same actions differently: {differs}" if differs else None, changes]
        found.difference = "; ".join(filter(None, parts)) or None

    def _of_twin(self, plan: int, reset: bool) -> tuple[Play, Any]:
        return self._play(self.member_0, plan, reset=reset), self._numbers(self.member_0)

    def _play(self, env: Any, seed: int, steps: int = STEPS, reset: bool = False, end: float = np.inf) -> Play:
        return played(env, RandomActions(self.env, seed), steps, reset, end)

    def _numbers(self, member: Any, of_spaces: bool = True) -> list[bytes | None]:
        """The states of the generators of the env or a copy, and of its spaces if so asked."""
        streams = [read_state(one) for one in getattr(member.shared_state, "states", [])]
        with contextlib.suppress(Exception):  # what forks need not be copied
            copier = Copier(self.reuse)
            copier(member.env)
            self.reuse = copier.natives
            left_out = set() if of_spaces else generators_of_spaces(member.env)
            generators = [one for one, _ in copier.natives.values() if isinstance(one, GENERATORS) and id(one) not in left_out]
            return [read_state(state_of(one)) for one in generators] + streams
        return streams

    def _play_to_the_end(self, end: float) -> str | None:
        """Let two siblings play the same episode to its end, if the time allows, and see what that changes outside."""
        if self.siblings[0].kind == "forked":  # what a fork changes is its own
            return None
        siblings = [self.make(one) for one in self.siblings[:2]]
        numbers = self._numbers(siblings[0], of_spaces=False)
        first = self._play(siblings[0], -1, LONGEST, end=end)
        self.found.noisy |= numbers != self._numbers(siblings[0], of_spaces=False)
        outside = self.around.digests()
        self._play(siblings[1], -1, len(first))
        return _outside(outside, self.around.digests())


def read_state(state: Any) -> bytes | None:
    """A digest of the state of a generator of random numbers."""
    return digest(state.numpy() if hasattr(state, "numpy") else state)


def _outside(before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """The values outside of the env that have changed."""
    changes = [name for name in after if name in before and before[name] != after[name]]
    return f"playing changes {', '.join(changes[:5])}, outside of the env" if changes else None


class Member0:
    """The env itself, with its streams if it has some, as what steps like a sibling."""

    def __init__(self, env: Any, streams: MemberState | None) -> None:
        self.env, self.shared_state = env, contextlib.nullcontext() if streams is None else streams
        self.get_wrapper_attr = env.get_wrapper_attr

    def step(self, action: Any) -> Any:
        with self.shared_state:
            return self.env.step(action)

    def reset(self, **keywords: Any) -> Any:
        with self.shared_state:
            return self.env.reset(**keywords)


def played(env: Any, actions: "RandomActions", steps: int, reset: bool = False, end: float = np.inf) -> Play:
    """Take some actions, until an episode ends or something is raised."""
    seen: Play = []
    try:
        for _ in range(steps):
            seen.append(shown(*env.step(actions(env))))
            if seen[-1]["terminated"] or seen[-1]["truncated"] or time.perf_counter() > end:
                break
        if reset:
            seen.append({"observation after a reset": copy.deepcopy(env.reset()[0])})
    except BaseException as error:  # an interrupt, too, is the env's own: Ctrl-C is for the parent
        seen.append({"exception": f"{type(error).__name__}: {error}"})
    return seen


def shown(observation: Any, reward: Any, terminated: Any, truncated: Any, *_: Any) -> dict[str, Any]:
    """What a step showed, by name, to be compared later."""
    seen = {"observation": copy.deepcopy(observation), "reward": float(np.asarray(reward).reshape(-1)[0])}
    return seen | {"terminated": bool(terminated), "truncated": bool(truncated)}


class RandomActions:
    """
    Actions drawn at random, the same for the same seed; valid ones, where the env has ``action_masks()``. They are counted
    from 0, as a policy does. The generator of the env's own space is not touched.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(seed % 2**31)
        try:
            self.masked = callable(env.get_wrapper_attr("action_masks"))
        except AttributeError:
            self.masked = False

    def __call__(self, env: Any) -> Any:
        """An action for the env or a sibling of it, where that stands."""
        space = self.space
        if not self.masked:
            action = space.sample()
            return action - space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else action
        mask = np.asarray(env.get_wrapper_attr("action_masks")()).reshape(-1).astype(bool)
        choices = getattr(space, "nvec", [space.n] if isinstance(space, spaces.Discrete) else [2] * (mask.size // 2))
        parts = np.split(mask, np.cumsum(choices)[:-1])
        action = [int(np.argmax(valid * space.np_random.uniform(0.1, 1, valid.size))) for valid in parts]
        return action[0] if isinstance(space, spaces.Discrete) else np.array(action, space.dtype).reshape(space.shape)


def difference(truth: Play, again: Play) -> str | None:
    """Compare two plays bit for bit: the first difference, with field, step and values, or None."""
    for number, (one, other) in enumerate(zip(truth, again, strict=False), start=1):
        if "exception" in other:
            return f"it raised {other['exception']} at step {number}"
        if one.keys() != other.keys():
            return f"once the episode ended at step {number - 1}, and once it did not"
        for name in one:
            found = first_difference(name, one[name], other[name])
            if found is not None:
                return f"{found} at step {number}"
    if len(truth) == len(again):
        return None
    return f"once the episode ended at step {min(len(truth), len(again))}, and once it did not"


def first_difference(name: str, one: Any, other: Any) -> str | None:
    """Compare two values bit for bit: where they differ first, or None."""
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
    return next((found for part in parts if (found := first_difference(*part)) is not None), None)
