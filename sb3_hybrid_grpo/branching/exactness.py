"""
Whether siblings are exact, shown on the very env: in a fork of the process, where nothing can reach it.

From several states a first sibling plays a plan, before anybody else has played. A second one plays other actions. Then a
third one and the env itself play the plan: both must see what the first one saw. Where they do not, two forks in which nobody
else plays tell whether the difference is the env's own.
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
from sb3_hybrid_grpo.branching.forked_env import Fork
from sb3_hybrid_grpo.branching.global_state import Surroundings, digest, process_wide_generators
from sb3_hybrid_grpo.branching.native_types import is_generator, state_of
from sb3_hybrid_grpo.branching.wrapper_chain import generator_of, generators_of_spaces, lazy_holders

POINTS, STEPS, SECONDS = 4, 10, 1.0
"""From how many states an env plays, how many steps, and after how long no further state is looked for."""
LONGEST = 2000
"""Steps of an episode that is played to its end."""
ANSWER_WITHIN = 180.0
_RESET = "observation after a reset"
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
    """Whether the first steps draw random numbers."""
    reproducible: bool = True
    """Whether two forks of the env alone played the same."""
    draws: tuple[str, ...] = ()
    """Process-wide generators that were drawn from and have no stream of the env's own."""
    lazy: tuple[int, ...] = ()
    """Which of :func:`lazy_holders` made a generator of random numbers while they played."""
    shared: tuple[str, ...] = ()
    """Which objects that other envs hold, too, changed."""
    points: int = 0
    """From how many states the env has played."""


def examine(member_0: Any, make: Callable[[Any], Any], around: Surroundings, shared: dict[str, Any]) -> Finding:
    """
    Check siblings of an env, which is afterwards what it was.

    :param member_0: The env, without recorders on top, as a :class:`~sb3_hybrid_grpo.branching.sibling.SteppedEnv`
    :param make: Makes a sibling of it, given an earlier one that is not needed any more
    :param around: What its code refers to
    :param shared: Objects that other envs hold, too, by name
    :return: What was found
    :raises BranchingError: if the env hangs or dies in a fork
    """
    for resets in (True, False):
        check = _Check(member_0, make, around, shared, resets)
        found: Finding = check.in_fork(check.run)
        if found.difference is None or found.lazy or found.draws:
            return found
        (one, numbers), (other, its_numbers) = (check.in_fork(check.play_alone, found.points) for _ in range(2))
        if difference(one, other) is None and numbers == its_numbers:
            return found
        found.difference = None
        found.own_difference = difference(*([step for step in play if _RESET not in step] for play in (one, other)))
        found.reproducible = found.own_difference is None
        if not found.reproducible:
            break
    return found  # with a difference that is the env's own; one in resets alone leaves the steps to be compared


def _show_progress(env: Any, seconds: float) -> None:
    if seconds > 2 and sys.stderr is not None:
        bar = f"{'#' * min(int(4 * seconds), 40):.<40}"
        sys.stderr.write(f"\rChecking whether siblings of {env} are exact [{bar}] {seconds:.0f} s ")
        sys.stderr.flush()


class _Check:
    """The check itself; see :func:`examine`."""

    def __init__(self, member_0: Any, make: Any, around: Surroundings, shared: dict[str, Any], resets: bool) -> None:
        self.member_0, self.make, self.around, self.shared, self.resets = member_0, make, around, shared, resets
        self.env = member_0.env
        mine = [id(one.obj) for one in getattr(member_0.shared_state, "shared", ())]
        self.n_streams = len(mine)
        wide = process_wide_generators() | around.spaces
        self.watched = {name: one for name, one in wide.items() if id(one) not in mine}
        self.siblings: list[Any] = [None, None, None]
        self.reuse: Any = None
        self.last: Play = []
        self.found = Finding()

    def in_fork(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call one of the methods below in a fork."""
        fork = Fork(function, ANSWER_WITHIN, functools.partial(_show_progress, self.env))
        try:
            return fork.call(*arguments)
        finally:
            fork.close()

    def play_alone(self, points: int) -> tuple[Play, list[bytes | None]]:
        """Play as the env did, without siblings."""
        plays: Play = []
        for point in range(points):
            self._begin_anew_after(plays)
            plays += self._play_plan(self.member_0, point)
        return plays, self._numbers(self.member_0)

    def _begin_anew_after(self, play: Play) -> None:
        if play and (play[-1].get("terminated") or play[-1].get("truncated")):
            self.member_0.reset()

    def run(self) -> Finding:
        found, end = self.found, time.perf_counter() + SECONDS
        holders, shared, wide = lazy_holders(self.env), self._digests_of_shared(), self._wide()
        for point in range(POINTS):
            self._play_from_here(point)
            found.lazy, found.draws = _made(holders), self._drawn_since(wide)
            if found.lazy or found.draws or found.difference or found.error:
                return found
            if time.perf_counter() > end:
                break
        else:
            found.difference = self._play_to_the_end(end)
            found.draws = self._drawn_since(wide)
        now = self._digests_of_shared()
        found.shared = tuple(one for one in shared if shared[one] != now[one])
        return found

    def _wide(self) -> dict[str, Any]:
        return {name: digest(state_of(one)) for name, one in self.watched.items()}

    def _drawn_since(self, wide: dict[str, Any]) -> tuple[str, ...]:
        return tuple(name for name, now in self._wide().items() if now != wide[name])

    def _digests_of_shared(self) -> dict[str, Any]:
        return {name: digest(state_of(one) if is_generator(one) else one) for name, one in self.shared.items()}

    def _play_from_here(self, point: int) -> None:
        """Play from the state in which the env is."""
        self._begin_anew_after(self.last)
        self.found.points = point + 1
        first, second, third = self.siblings = [self.make(one) for one in self.siblings]
        is_copied = first.kind == "copied"  # what a fork changes is its own
        truth = self._play_plan(first, point)
        numbers = self._numbers(first)
        self._play(second, 2 * point + 1)
        if point == 0:  # later ones depend on how fast the machine is; the training's own steps show the rest
            self.found.noisy = self._numbers(second, of_spaces=False) != self._numbers(self.member_0, of_spaces=False)
        # from here on all actions were played before: a counter goes on every time, a cache has had all that it needed
        outside = self.around.digests() if is_copied else {}
        again, last = self._play_plan(third, point), self._play_plan(self.member_0, point)
        self.last = last
        differs = difference(truth, again) or difference(truth, last)
        if differs is None and "exception" in last[-1]:
            self.found.error = last[-1]["exception"]
            return
        if differs is None and is_copied and numbers != self._numbers(self.member_0):
            differs = "the state of its random numbers: a cache outside of the env holds what siblings drew"
        parts = [f"played the same actions differently: {differs}" if differs else None]
        parts += [_outside(outside, self.around.digests())] if is_copied else []
        self.found.difference = "; ".join(filter(None, parts)) or None

    def _play_plan(self, env: Any, point: int) -> Play:
        """Play the plan that belongs to a state, after the first one with a reset."""
        return self._play(env, 2 * point, reset=self.resets and point == 0)

    def _play(self, env: Any, seed: int, steps: int = STEPS, reset: bool = False, end: float = np.inf) -> Play:
        return played(env, RandomActions(self.env, seed), steps, reset, end)

    def _numbers(self, member: Any, of_spaces: bool = True) -> list[bytes | None]:
        """The states of the generators of the env or a copy, and of its spaces if so asked; none of a fork."""
        with contextlib.suppress(Exception):  # what forks need not be copied
            states = getattr(member.shared_state, "states", [])
            copier = Copier(self.reuse)
            numbers = numbers_of(member.env, states[len(states) - self.n_streams :], copier, of_spaces)
            self.reuse = copier.natives
            return numbers
        return []

    def _play_to_the_end(self, end: float) -> str | None:
        """Let two siblings play the same episode to its end, if the time allows, and see what that changes outside."""
        if self.siblings[0].kind == "forked":
            return None
        self._begin_anew_after(self.last)
        siblings = [self.make(one) for one in self.siblings[:2]]
        holders = lazy_holders(siblings[0].env)
        first = self._play(siblings[0], -1, LONGEST, end=end)
        self.found.lazy = _made(holders)
        outside = self.around.digests()
        self._play(siblings[1], -1, len(first))
        return _outside(outside, self.around.digests())


def numbers_of(env: Any, streams: list[Any], copier: Copier, of_spaces: bool = True) -> list[bytes | None]:
    """The states of the generators that an env leads to, with those of its spaces if so asked, and of its streams."""
    copier(env)
    left_out = set() if of_spaces else generators_of_spaces(env)
    generators = [one for one, _ in copier.natives.values() if is_generator(one) and id(one) not in left_out]
    return [digest(one) for one in (*map(state_of, generators), *streams)]


def _made(holders: list[Any]) -> tuple[int, ...]:
    """Which of some envs and spaces without a generator of random numbers have one now."""
    return tuple(place for place, holder in enumerate(holders) if generator_of(holder) is not None)


def _outside(before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """The values outside of the env that have changed."""
    changes = [name for name in after if name in before and before[name] != after[name]]
    return f"playing changes {', '.join(changes[:5])}, outside of the env" if changes else None


def played(env: Any, actions: "RandomActions", steps: int, reset: bool = False, end: float = np.inf) -> Play:
    """Take some actions, until an episode ends or something is raised."""
    seen: Play = []
    try:
        for _ in range(steps):
            seen.append(shown(*env.step(actions(env))))
            if seen[-1]["terminated"] or seen[-1]["truncated"] or time.perf_counter() > end:
                break
        if reset:
            seen.append({_RESET: copy.deepcopy(env.reset()[0])})
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
        if "exception" in other and other != one:
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
