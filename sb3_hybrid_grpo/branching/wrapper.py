"""The wrapper that lets siblings live beside an env."""

import copy
import gc
import itertools
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copier import Copier, Survey
from sb3_hybrid_grpo.branching.engines import FINAL_ADVICE, CannotCopyError, MemberState, RefusedError
from sb3_hybrid_grpo.branching.exactness import (
    Play,
    RandomActions,
    chosen,
    difference,
    examine,
    lazy_holders,
    read_state,
    shown,
    spaces_of,
)
from sb3_hybrid_grpo.branching.forked_env import ForkedEnv, can_fork, portable
from sb3_hybrid_grpo.branching.global_state import own_streams, process_wide_generators, surroundings
from sb3_hybrid_grpo.branching.native_types import state_of
from sb3_hybrid_grpo.branching.sibling import CopiedEnv, Sibling, path_to
from sb3_hybrid_grpo.branching.wrapper_chain import SkippedBySiblings, is_recorder, layers_of
from sb3_hybrid_grpo.errors import BranchingError

_OF_WRAPPERS = frozenset(vars(gym.Wrapper(gym.Env())))
"""Attributes of gymnasium's wrappers. Those of ours have names that Python mangles, as no env's are."""
_ONLY_READ = frozenset({"action_masks", "render_mode", "metadata", "spec", "observation_space", "action_space"})
"""What is asked of an env while it plays, without changing it."""


class SiblingSteps(NamedTuple):
    """One step of each of an env's M siblings; a list of M entries each."""

    observations: list[Any]
    """Observations reached, before any reset."""
    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]
    infos: list[dict[str, Any]]


class SiblingFailure:
    """
    A sibling's step raised. Returned, not raised: an exception would end the worker of a SubprocVecEnv.

    :param member: The member; 0 for the env itself
    :param error: What was raised. It is a BranchingError if it is this package that cannot go on
    """

    def __init__(self, member: int, error: BaseException, text: str = "") -> None:
        self.member, self.error = member, error
        self.traceback = text or "".join(traceback.format_exception(error))

    def __reduce__(self) -> Any:
        return SiblingFailure, (self.member, portable(self.error), self.traceback)


def notify(message: str) -> None:
    """
    Warn, and never raise, whatever filters say.

    :param message: What to say
    """
    try:
        warnings.warn(message, stacklevel=3)
    except Warning:
        print(f"UserWarning: {message}", file=sys.stderr)


class SiblingMaker:
    """
    Makes siblings of an env: copies where all that it holds can be copied and that is exact, else forks.

    :param env: The env
    :param own: Whether the env itself draws from streams of its own, too, where it shares generators
    :raises BranchingError: if no sibling can have what the env holds
    """

    def __init__(self, env: gym.Env[Any, Any], own: bool = True) -> None:
        self.env = env
        self.forks, self.own_models, self.watchable, self.noisy = False, False, True, False
        self.reasons: list[str] = []
        """Why copies cannot be used."""
        self.streams: MemberState | None = None
        self._told = False
        copier = self._try_to_copy()
        self.around = surroundings(copier.originals)
        self._take_streams([one.name for one in self.around.generators], own)
        self.noisy = bool(copier.swapped)

    def _try_to_copy(self) -> Copier:
        copier = Copier()
        try:
            copier(self.env)
        except Exception as error:
            self.take_forks(self._reason(error))
            copier.originals += list(layers_of(self.env))
        return copier

    def _reason(self, error: Exception) -> str:
        if isinstance(error, RecursionError):
            return "it holds objects that lead to one another in too long a chain"
        path = path_to(self.env, error.obj) if isinstance(error, CannotCopyError) else str(self.env)
        if isinstance(error, RefusedError):
            raise BranchingError(
                f"{self.env} cannot be branched: {path} {error.reason}. {error.advice}, {FINAL_ADVICE}."
            ) from error
        return f"{path} {error.reason}" if isinstance(error, CannotCopyError) else f"copying it raised {error!r}"

    def _take_streams(self, names: Sequence[str], own: bool = True) -> None:
        known = {one.name: one for one in self.around.generators + self.around.spaces} | process_wide_generators()
        streams = own_streams([known[name] for name in names], own)
        if self.streams is not None:
            streams.shared, streams.states = self.streams.shared + streams.shared, self.streams.states + streams.states
        if streams.shared:
            self.streams = streams

    def take_forks(self, reason: str) -> None:
        """
        Make forks from now on.

        :param reason: Why copies cannot be used
        :raises BranchingError: where processes cannot be forked
        """
        self.reasons.append(reason)
        self.forks = True
        if not can_fork():
            raise not_exact(self.env, self.reasons)

    def __call__(self, previous: Sibling | None = None) -> Sibling:
        """
        :param previous: A sibling that is not needed any more
        :return: A sibling in the env's present state
        :raises BranchingError: if no sibling can have what the env holds
        """
        if not self.forks:
            try:
                return CopiedEnv(self.env, previous, self.own_models, self.streams)
            except Exception as error:  # the env holds something that it did not hold before
                self.take_forks(self._reason(error))
        self.warn_of_costs()
        return ForkedEnv(self.env, previous, self.streams)

    def warn_of_costs(self) -> None:
        """Say once why siblings are forks, and what that costs."""
        if not self._told:
            self._told = True
            notify(f"{self.costs_of_forks()} What is faster cannot be used: {'; '.join(self.reasons)}.")

    def costs_of_forks(self) -> str:
        """
        :return: A sentence with the costs, measured with a fork that takes two steps
        """
        (action,) = RandomActions(self.env).draw(1)
        start = time.perf_counter()
        sibling = ForkedEnv(self.env, None, self.streams)
        try:
            _, _, terminated, truncated, _ = sibling.step(chosen(sibling, action))
            first = time.perf_counter() - start
            if terminated or truncated:
                sibling.reset()
            start = time.perf_counter()
            sibling.step(chosen(sibling, action))
        except Exception:  # the env's own, which the training will show as it is
            return f"Each sibling of {self.env} is a process, forked from the env's, which takes milliseconds."
        more = time.perf_counter() - start
        return (
            f"Each sibling of {self.env} is a process, forked from the env's. That takes {1e6 * first:.0f} µs with a first "
            f"step, and {1e6 * more:.0f} µs for every step more."
        )

    def check(self, shared: dict[str, Any]) -> None:
        """
        Show that siblings of this very env are exact: copies, or else forks.

        :param shared: Objects that other envs hold, too, by name
        :raises BranchingError: if neither are
        """
        while can_fork():
            found = examine(self.env, self._make_for_check, self.streams, self.around, shared)
            if found.lazy:  # generators that are made when they are first needed: made now, so that members share them
                for place, holder in enumerate(lazy_holders(self.env)):
                    if place in found.lazy:
                        _ = holder.np_random
            elif found.draws:
                self._take_streams(found.draws)
            elif found.changes_model and not self.own_models:
                self.own_models = True
            elif found.difference is not None and not self.forks:
                self.take_forks(found.difference)
            else:
                break
        else:
            return
        self.noisy, self.watchable = self.noisy or found.noisy, found.reproducible
        if found.difference is not None or (found.own_difference is not None and self.around.refused is not None):
            raise not_exact(self.env, [*self.reasons, found.difference or f"{self.around.refused}"])
        if found.error is not None:
            notify(
                f"Whether siblings of {self.env} are exact could not be shown before the training: the env raised "
                f"{found.error} when it played random actions. Where only some actions are valid, give it action_masks(), as "
                "sb3-contrib's MaskablePPO wants it."
            )
        if found.own_difference is not None:
            notify(
                f"{self.env} plays the same actions differently in two exact copies of its process ({found.own_difference}): it "
                "reads a clock, or draws random numbers without a seed. Members of a group do not see the same noise there."
            )
        self.watchable &= not found.shared
        for name in sorted((path_to(self.env, shared[key]) for key in found.shared), key=len)[:1]:
            notify(
                f"{name} is shared by several envs and changes when one of them steps, so siblings do not see what another env "
                "does to it. Give each env its own, or put the envs into a SubprocVecEnv."
            )

    def _make_for_check(self, previous: Sibling | None) -> Sibling:
        self._told = True  # in the process of the check
        return self(previous)


def not_exact(env: gym.Env[Any, Any], reasons: Sequence[str]) -> BranchingError:
    """
    :param env: The env
    :param reasons: Why neither copies nor forks can be used
    :return: The error that says so
    """
    return BranchingError(
        f"{env} cannot be branched: {'; '.join(reasons)}. It keeps state where neither a copy nor a forked process has its own "
        "(another process, a file, shared memory), or says wrongly how it is copied. Keep all state in the env, give it the two "
        f"methods of sb3_hybrid_grpo.branching.SupportsBranching, {FINAL_ADVICE}."
    )


class BranchingWrapper(gym.Wrapper[Any, Any, Any, Any], SkippedBySiblings):
    """
    Lets siblings live beside an env: other members of the env's group. ``step`` and ``reset`` are those of the env.

    :param env: The env, without the recorders (:class:`Monitor` and its like) that siblings must not write to
    :raises BranchingError: if the env cannot be branched
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.__maker = SiblingMaker(env)
        self.__siblings: dict[int, Sibling] = {}
        self.__forks_of_all, self.__steps = 0, 0
        self.__watch: Sibling | None = None
        self.__numbers: list[bytes | None] = []
        self.__survey = Survey(env)
        self.__error: BranchingError | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """What a VecEnv sets on the outermost layer (``set_attr``) is meant for the env."""
        if name in _OF_WRAPPERS or name.startswith("_BranchingWrapper__") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self.__watch = None
            setattr(self.env, name, value)

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of the env. Who calls a method may change the env, and siblings see that at their next fork."""
        if name not in _ONLY_READ and not hasattr(type(self), name):
            self.__watch = None
        return super().get_wrapper_attr(name)

    @property
    def unwrapped(self) -> gym.Env[Any, Any]:
        self.__watch = None
        return super().unwrapped

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has no siblings yet: they cannot be pickled."""
        return type(self), (self.env,), {name: vars(self)[name] for name in _OF_WRAPPERS - {"env"}}

    @property
    def sibling_maker(self) -> SiblingMaker:
        """Makes siblings of the env."""
        return self.__maker

    @property
    def siblings(self) -> dict[int, Sibling]:
        """The living siblings, by their number."""
        return self.__siblings

    def check_siblings(self, shared: dict[str, Any] | None = None) -> SiblingFailure | None:
        """
        Show that siblings of this very env are exact, before there are any.

        :param shared: Objects that other envs hold, too, by name
        :return: A failure if they are not
        """
        try:
            self.__maker.check(shared or {})
        except Exception as error:
            return SiblingFailure(0, error)
        return None

    def held_objects(self) -> list[Any]:
        """
        :return: The objects of which a copy of the env has copies; nothing where it cannot be copied
        """
        copier = Copier()
        try:
            copier(self.env)
        except Exception:
            return []
        return copier.originals

    def fork_reasons(self) -> str:
        """
        :return: Why siblings of the env are forked processes, and what that costs; empty if they are copies
        """
        maker = self.__maker
        return f"{maker.costs_of_forks()} What is faster cannot be used: {'; '.join(maker.reasons)}." if maker.forks else ""

    def saw_noise(self) -> bool:
        """
        Find out whether the env draws random numbers while it steps; what it draws in a reset does not count.

        :return: Whether a step was seen to do so
        """
        self.__look_for_noise()
        self.__note_numbers()
        return self.__maker.noisy

    def __look_for_noise(self) -> None:
        """Compare the generators with what they were after the last reset."""
        if self.__numbers and not self.__maker.noisy:
            before, self.__numbers = self.__numbers, []
            self.__note_numbers()
            self.__maker.noisy |= self.__numbers != before

    def __note_numbers(self) -> None:
        if self.__maker.noisy:
            return
        streams = self.__maker.streams
        states = [] if streams is None else streams.states
        try:
            # a callback may draw from a space, too: noise of that kind only the check sees
            of_spaces = [one._np_random for one in spaces_of(self.env)]
            own = [state_of(one) for one in self.__survey()[0] if all(one is not its for its in of_spaces)]
            self.__numbers = [read_state(one) for one in [*own, *states]]
        except Exception:  # what is forked may hide its generators
            self.__maker.noisy = True

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        watch = self.__watch
        taken = None if watch is None else copy.deepcopy(action)
        streams = self.__maker.streams
        if streams is None:
            result = self.env.step(action)
        else:
            with streams:
                result = self.env.step(action)
        if result[2] or result[3]:  # to be kept, while the env writes the next one where this one may lie
            result = (copy.deepcopy(result[0]), *result[1:])
        if watch is not None:
            self.__compare(watch, taken, result)
        return result

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.__watch = None
        self.__look_for_noise()
        streams = self.__maker.streams
        if streams is None:
            result = self.env.reset(**kwargs)
        else:
            with streams:
                result = self.env.reset(**kwargs)
        self.__note_numbers()
        return result

    def close(self) -> None:
        for sibling in self.__siblings.values():
            sibling.close()
        self.__siblings, self.__watch = {}, None
        super().close()

    def __compare(self, watch: Sibling, action: Any, result: Any) -> None:
        """Step one more sibling as member 0 was: it must see the same. What differs late shows here."""
        self.__steps += 1
        truth: Play = [shown(*result)]
        try:
            again: Play = [shown(*watch.step(action))]
        except Exception as error:
            again = [{"exception": repr(error)}]
        found = difference(truth, again)
        if result[2] or result[3]:
            self.__watch = None
        if found is None:
            return
        self.__watch = None
        found = found.replace("at step 1", f"{self.__steps} steps after a fork")
        if watch.kind == "forked":
            reasons = [*self.__maker.reasons, f"a forked process played the same actions differently: {found}"]
            self.__error = not_exact(self.env, reasons)
            return
        self.__maker.take_forks(f"a copy played the same actions differently: {found}")

    def __begin_watch(self) -> None:
        """At the 1st, 2nd, 4th, 8th, … fork of all siblings."""
        self.__forks_of_all += 1
        previous, self.__watch = self.__watch, None
        if self.__maker.watchable and self.__forks_of_all & (self.__forks_of_all - 1) == 0:
            self.__watch, self.__steps = self.__maker(previous), 0

    def wrappers_above(self) -> list[str]:
        """
        Name the wrappers above this one that siblings would escape. In a process of a SubprocVecEnv nothing leads to the
        outermost of them; :func:`layers_above` is for where something does.

        :return: The names of their classes, innermost first
        """
        gc.collect()  # wrappers that nobody holds any more
        wrappers: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), gym.Wrapper)]
        above: list[Any] = [self]
        for layer in above:
            above += [one for one in wrappers if vars(one).get("env") is layer and all(one is not known for known in above)]
        return [type(layer).__name__ for layer in above[1:] if not is_recorder(layer)]

    def step_siblings(self, actions: Any, forks: Sequence[bool], keep: bool = True) -> SiblingSteps | SiblingFailure:
        """
        Step every sibling once. The env stays as it was.

        :param actions: One action for each of the M siblings, ``(M, ...)``
        :param forks: Whether each sibling starts from the env's current state, M of them; the others go on from their own
        :param keep: Whether the siblings go on after this step
        :return: What the siblings saw, or which of them failed
        """
        steps = SiblingSteps([], [], [], [], [])
        observations, rewards, all_terminated, all_truncated, infos = steps
        siblings, maker, member = self.__siblings, self.__maker, -1
        try:
            if self.__error is not None:
                raise self.__error
            if all(forks):
                self.__begin_watch()
            for member, (action, starts) in enumerate(zip(actions, forks)):  # noqa: B905  hot
                if starts:
                    siblings[member] = maker(siblings.pop(member, None))
                observation, reward, terminated, truncated, info = siblings[member].step(action)
                observations.append(observation.copy() if type(observation) is np.ndarray else _copied(observation))
                rewards.append(float(reward))
                all_terminated.append(bool(terminated))
                all_truncated.append(bool(truncated))
                infos.append({} if info is None else info)
        except Exception as error:
            return SiblingFailure(member + 1, error)
        return steps

    def mask_siblings(self, wanted: list[int]) -> list[np.ndarray] | SiblingFailure:
        """
        Ask siblings which actions are valid in their states.

        :param wanted: Which siblings
        :return: What the env's ``action_masks()`` says in the state of each
        """
        masks = []
        member = 0
        try:
            for member in wanted:
                masks.append(np.array(self.__siblings[member].get_wrapper_attr("action_masks")(), dtype=bool))
        except Exception as error:
            return SiblingFailure(member + 1, error)
        return masks


def _copied(observation: Any) -> Any:
    """Some envs return a buffer of their own, which the next step overwrites."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)


def make_branchable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Put a :class:`BranchingWrapper` into an env's chain of wrappers: below the recorders at its top, above all the others, so
    that siblings never write an episode to a log and never escape a time limit.

    ``HybridGRPO`` does it by itself for env ids, envs and ``DummyVecEnv``. For a ``SubprocVecEnv``::

        make_vec_env("CartPole-v1", n_envs=4, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)

    :param env: The env; its recorders are kept, and changed to hold the new wrapper
    :return: The env, branchable
    :raises BranchingError: if the env cannot be branched
    """
    if any(isinstance(layer, BranchingWrapper) for layer in layers_of(env)):
        return env
    lowest: Any = None
    layer = env
    while is_recorder(layer):
        lowest, layer = layer, layer.env  # type: ignore[attr-defined]
    branchable = BranchingWrapper(layer)
    if lowest is None:
        return branchable
    lowest.env = branchable
    return env


def layers_above(env: gym.Env[Any, Any]) -> list[str]:
    """
    Name the wrappers above the :class:`BranchingWrapper` of an env that siblings would escape.

    :param env: The env's outermost layer
    :return: The names of their classes, outermost first
    """
    above = itertools.takewhile(lambda layer: not isinstance(layer, BranchingWrapper), layers_of(env))
    return [type(layer).__name__ for layer in above if not is_recorder(layer)]


def fork_env(env: gym.Env[Any, Any], n: int) -> list[Sibling]:
    """
    Make live, exact copies of an env, with its wrappers and its generators of random numbers, as it is now.

    What no rule copies is forked: such a copy is a process, and its ``close()`` ends it. Recorders (``Monitor`` and its like) are
    left out. A copy is not reset: its next ``step`` goes on from the env's state. The env itself is not touched.

    :param env: Any gymnasium env
    :param n: How many
    :return: n envs, each with ``step``, ``reset``, ``get_wrapper_attr`` and ``close``, and a ``kind``: "copied" or "forked"
    :raises BranchingError: if no copy can have what the env holds
    :raises ValueError: for a negative number
    """
    if n < 0:
        raise ValueError(f"n must be a number of copies, at least 0, got {n}.")
    maker = SiblingMaker(env, own=False)
    return [maker() for _ in range(n)]
