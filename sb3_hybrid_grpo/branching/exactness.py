"""
Check on the user's env that siblings are exact. The check runs in a fork of the process, so that the env stays untouched.

A plan is a fixed sequence of random actions. From several states, a first sibling plays a plan. A second sibling plays other
actions. Then a third sibling and the env itself play the plan: their results must equal the first sibling's. If they differ,
the env alone plays in two more forks: if these two differ as well, the env itself is not reproducible.
"""

import contextlib
import copy
import dataclasses
import pickle
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.forked_env import in_fork
from sb3_hybrid_grpo.branching.global_state import Surroundings, digest, process_wide_generators
from sb3_hybrid_grpo.branching.wrapper_chain import generators_of_spaces, is_generator, state_of

POINTS, STEPS, SECONDS = 4, 10, 1.0
"""Number of states to play from, number of steps from each, and the time after which no further state is tried."""
LONGEST = 2000
"""The most steps of an episode that is played to its end."""
_RESET = "observation after a reset"
Trajectory = list[dict[str, Any]]
"""The results of each step, by name."""


@dataclasses.dataclass
class Finding:
    """The result of a check."""

    difference: str | None = None
    """The first difference between siblings, or between the env and a sibling; None if there was none."""
    own_difference: str | None = None
    """The difference between two forks of the env alone, for example because it reads a clock or draws without a seed."""
    error: str | None = None
    """The exception that the env itself raised when it played; the check then shows nothing."""
    noisy: bool | None = None
    """Whether the first steps draw random numbers."""
    reproducible: bool = True
    """Whether two forks of the env alone played the same."""
    draws: tuple[str, ...] = ()
    """Process-wide generators that the env drew from without a stream of its own."""
    shared: tuple[str, ...] = ()
    """Objects that other envs hold, too, and that changed during the check."""
    points: int = 0
    """Number of states from which the env has played."""
    at_the_end: int = 0
    """Number of steps that it played to the end of an episode."""


def examine(member_0: Any, make: Callable[[Any], Any], around: Surroundings, shared: dict[str, Any]) -> Finding:
    """
    Check siblings of an env. The env is not changed.

    :param member_0: The env, without recorders on top, as a :class:`~sb3_hybrid_grpo.branching.sibling.SteppedEnv`
    :param make: Makes a sibling of the env, given an earlier one that is not needed any more
    :param around: The objects outside of the env to which its code refers
    :param shared: Objects that other envs hold, too, by name
    :return: The result
    :raises BranchingError: if the env hangs or dies in a fork
    """
    for resets in (True, False):
        check = _Check(member_0, make, around, shared, resets)
        found: Finding = in_fork(check.run, check.env)
        if found.difference is None or found.draws:
            return found
        extent = (found.points, found.at_the_end)
        (one, numbers), (other, its_numbers) = (in_fork(check.play_alone, check.env, *extent) for _ in range(2))
        if difference(one, other) is None and numbers == its_numbers:
            return found
        found.difference = None
        found.own_difference = difference(
            *([step for step in trajectory if _RESET not in step] for trajectory in (one, other))
        )
        found.reproducible = found.own_difference is None
        if not found.reproducible:
            break
    return found  # the env itself is not reproducible; if only its resets are not, a second check compares steps alone


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
        self.last: Trajectory = []
        self.found = Finding()

    def play_alone(self, points: int, at_the_end: int) -> tuple[Trajectory, list[bytes | None]]:
        """Play as the env did, without siblings."""
        trajectory: Trajectory = []
        for point in range(points):
            self._begin_anew_after(trajectory)
            trajectory += self._play_plan(self.member_0, point)
        if at_the_end:
            self._begin_anew_after(trajectory)
            trajectory += self._play(self.member_0, -1, at_the_end)
        return trajectory, self._numbers(self.member_0)

    def _begin_anew_after(self, last: Trajectory) -> None:
        if last and (last[-1].get("terminated") or last[-1].get("truncated")):
            self.member_0.reset()

    def run(self) -> Finding:
        found, end = self.found, time.perf_counter() + SECONDS
        shared, wide = self._digests_of_shared(), self._wide()
        for point in range(POINTS):
            self._play_from_here(point)
            found.draws = self._drawn_since(wide)
            if found.draws or found.difference or found.error:
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
        is_copied = first.kind == "copied"  # a forked process changes nothing here
        truth = self._play_plan(first, point)
        numbers = self._numbers(first)
        self._play(second, 2 * point + 1)
        if point == 0 and is_copied:  # the number of later points depends on the machine's speed
            self.found.noisy = self._numbers(second, of_spaces=False) != self._numbers(self.member_0, of_spaces=False)
        # all actions below were played before, so a cache changes no more; only a counter still does
        outside = self.around.digests() if is_copied else {}
        again, last = self._play_plan(third, point), self._play_plan(self.member_0, point)
        self.last = last
        differs = difference(truth, again) or difference(truth, last)
        if differs is None and "exception" in last[-1]:
            self.found.error = last[-1]["exception"]
            return
        if differs is None and is_copied and numbers != self._numbers(self.member_0):
            differs = "the state of its random numbers: a cache outside of the env holds numbers that siblings drew"
        parts = [f"played the same actions differently: {differs}" if differs else None]
        parts += [_outside(outside, self.around.digests())] if is_copied else []
        self.found.difference = "; ".join(filter(None, parts)) or None

    def _play_plan(self, env: Any, point: int) -> Trajectory:
        """Play the plan that belongs to a state; the first plan ends with a reset."""
        return self._play(env, 2 * point, reset=self.resets and point == 0)

    def _play(self, env: Any, seed: int, steps: int = STEPS, reset: bool = False, end: float = np.inf) -> Trajectory:
        return trajectory_of(env, RandomActions(self.env, seed), steps, reset, end)

    def _numbers(self, member: Any, of_spaces: bool = True) -> list[bytes | None]:
        """The states of the generators of the env or a copy, with its spaces' if ``of_spaces``; empty for a fork."""
        with contextlib.suppress(Exception):  # an env that is forked may be impossible to copy
            copier = Copier(self.reuse)
            copier.whole(member.env)
            self.reuse = copier.natives
            left_out = set() if of_spaces else generators_of_spaces(member.env)
            generators = [one for one, _ in copier.natives.values() if is_generator(one) and id(one) not in left_out]
            states = getattr(member.shared_state, "states", [])
            return [digest(one) for one in (*map(state_of, generators), *states[len(states) - self.n_streams :])]
        return []

    def _play_to_the_end(self, end: float) -> str | None:
        """Let two siblings and the env play the same episode to its end, if time allows, and compare all that they show."""
        if self.siblings[0].kind == "forked":
            return None
        self._begin_anew_after(self.last)
        siblings = [self.make(one) for one in self.siblings[:2]]
        if siblings[0].kind == "forked":  # the env now holds an object that cannot be copied
            return None
        now = time.perf_counter()
        first = self._play(siblings[0], -1, LONGEST, end=now + (end - now) / 3)  # the two others take as long
        outside = self.around.digests()
        again = self._play(siblings[1], -1, len(first))
        changes = _outside(outside, self.around.digests())
        self.found.at_the_end = len(first)
        differs = difference(first, again) or difference(first, self._play(self.member_0, -1, len(first)))
        return f"played the same actions differently: {differs}" if differs else changes


def _outside(before: dict[str, bytes], after: dict[str, bytes]) -> str | None:
    """The values outside of the env that have changed."""
    changes = [name for name in after if name in before and before[name] != after[name]]
    return f"playing changes {', '.join(changes[:5])}, outside of the env" if changes else None


def trajectory_of(env: Any, actions: "RandomActions", steps: int, reset: bool = False, end: float = np.inf) -> Trajectory:
    """Take actions until an episode ends or an exception is raised."""
    seen: Trajectory = []
    try:
        for _ in range(steps):
            seen.append(shown(*env.step(actions(env))))
            if seen[-1]["terminated"] or seen[-1]["truncated"] or time.perf_counter() > end:
                break
        if reset:
            seen.append({_RESET: copy.deepcopy(env.reset()[0])})
    except BaseException as error:  # even a KeyboardInterrupt comes from the env: forks ignore Ctrl-C
        seen.append({"exception": f"{type(error).__name__}: {error}"})
    return seen


def shown(observation: Any, reward: Any, terminated: Any, truncated: Any, *_: Any) -> dict[str, Any]:
    """The results of a step, by name, for a later comparison."""
    seen = {"observation": copy.deepcopy(observation), "reward": float(np.asarray(reward).reshape(-1)[0])}
    return seen | {"terminated": bool(terminated), "truncated": bool(truncated)}


class RandomActions:
    """
    Random actions, the same for the same seed. If the env has ``action_masks()``, they are valid. Discrete actions count from
    0, as a policy's do. The generator of the env's own action space is not used.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(seed % 2**31)
        try:
            self.masked = callable(env.get_wrapper_attr("action_masks"))
        except AttributeError:
            self.masked = False

    def __call__(self, env: Any) -> Any:
        """An action for the present state of the env or of a sibling."""
        space = self.space
        if not self.masked:
            action = space.sample()
            return action - space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else action
        mask = np.asarray(env.get_wrapper_attr("action_masks")()).reshape(-1).astype(bool)
        choices = getattr(space, "nvec", [space.n] if isinstance(space, spaces.Discrete) else [2] * (mask.size // 2))
        parts = np.split(mask, np.cumsum(choices)[:-1])
        action = [int(np.argmax(valid * space.np_random.uniform(0.1, 1, valid.size))) for valid in parts]
        return action[0] if isinstance(space, spaces.Discrete) else np.array(action, space.dtype).reshape(space.shape)


def difference(truth: Trajectory, again: Trajectory) -> str | None:
    """Compare two plays bit for bit: returns the first difference, with field, step and values, or None."""
    for number, (one, other) in enumerate(zip(truth, again, strict=False), start=1):
        raised = other.get("exception") or one.get("exception")
        if raised and other != one:
            return f"it raised {raised} at step {number}"
        if one.keys() != other.keys():
            return f"the episode ended at step {number - 1} in one play, and not in the other"
        for name in one:
            found = first_difference(name, one[name], other[name])
            if found is not None:
                return f"{found} at step {number}"
    if len(truth) == len(again):
        return None
    return f"the episode ended at step {min(len(truth), len(again))} in one play, and not in the other"


def first_difference(name: str, one: Any, other: Any) -> str | None:
    """Compare two values bit for bit: returns the first difference, or None."""
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
