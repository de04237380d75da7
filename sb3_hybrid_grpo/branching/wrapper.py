"""The wrapper that steps the siblings of an env, and functions that make an env branchable or copy it."""

import copy
import gc
import itertools
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.exactness import difference, shown
from sb3_hybrid_grpo.branching.forked_env import portable
from sb3_hybrid_grpo.branching.sibling import Sibling, SiblingMaker
from sb3_hybrid_grpo.branching.vec_wrappers import each
from sb3_hybrid_grpo.branching.wrapper_chain import SkippedBySiblings, is_recorder, layers_of, require_env, without_recorders
from sb3_hybrid_grpo.errors import BranchingError

_OF_WRAPPERS = frozenset(vars(gym.Wrapper(gym.Env())))
"""Attributes of gymnasium's wrappers. BranchingWrapper's own have mangled names, which no env's attribute has."""
_ONLY_READ = frozenset({"action_masks", "render_mode", "metadata", "spec", "observation_space", "action_space"})
"""Attributes that are read while an env plays, without a change of the env."""


class SiblingSteps(NamedTuple):
    """One step of each of an env's M siblings; a list of M entries each."""

    observations: list[Any]
    """Next observations, before any reset."""
    rewards: list[float]
    terminated: list[bool]
    truncated: list[bool]
    infos: list[dict[str, Any]]


class SiblingFailure:
    """
    The exception of a sibling's step. It is returned, because a raised one would end the worker of a SubprocVecEnv.

    :param member: The member; 0 for the env itself
    :param error: The exception; a BranchingError if this package raised it
    """

    def __init__(self, member: int, error: BaseException, text: str = "") -> None:
        self.member, self.error = member, error
        self.traceback = text or "".join(traceback.format_exception(error))

    def __reduce__(self) -> Any:
        return SiblingFailure, (self.member, portable(self.error), self.traceback)


class BranchingWrapper(gym.Wrapper[Any, Any, Any, Any], SkippedBySiblings):
    """Makes and steps an env's siblings, the other members of its group. ``step`` and ``reset`` are the env's own."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.__maker = SiblingMaker(env)
        self.__siblings: dict[int, Sibling] = {}
        self.__watch: Sibling | None = None
        self.__forks_of_all, self.__steps_of_watch, self.__next_watches = 0, 0, (1, 2)
        self.__error: BranchingError | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Pass attributes on to the env: a VecEnv's ``set_attr`` sets them on the outermost layer."""
        if name in _OF_WRAPPERS or name.startswith("_BranchingWrapper__") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self.__watch = None
            setattr(self.env, name, value)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the env. Siblings get it at their next fork."""
        self.__watch = None
        return super().set_wrapper_attr(name, value, force=force)

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of the env. It may be a method that changes the env; siblings get such changes at their next fork."""
        if name not in _ONLY_READ and not hasattr(type(self), name):
            self.__watch = None
        found, watch = super().get_wrapper_attr(name), self.__watch
        if name != "action_masks" or watch is None:
            return found

        def masks() -> Any:  # a step may use what the env noted when it was asked
            with suppress(Exception):  # the watch's next step will differ
                watch.get_wrapper_attr(name)()
            return found()

        return masks

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

    def check_siblings(self, shared: dict[str, Any] | None = None) -> SiblingFailure | None:
        """
        Check that siblings of this env are exact, before any are made.

        :param shared: Objects that other envs of this process hold, too, by their ids; None if there is no other env
        """
        try:
            self.__maker.check(shared)
        except Exception as error:
            return SiblingFailure(0, error)
        return None

    def renew_streams(self) -> None:
        """Begin the env's streams anew: a new model may have seeded the generators that they replace."""
        self.__watch = None
        self.__maker.renew_streams()

    def held_objects(self) -> list[Any]:
        """The objects that are copied with the env; empty if the env cannot be copied."""
        copier = Copier()
        try:
            copier.whole(self.env)
        except Exception:
            return []
        return copier.originals

    def fork_reasons(self) -> str:
        """Why siblings of the env are forked processes, and what they cost; empty if they are copies."""
        return self.__maker.why_forks() if self.__maker.forks else ""

    def saw_noise(self) -> bool | None:
        """Whether the check's first steps drew random numbers, ten at most and without a reset; None if that is not known."""
        return self.__maker.noisy

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        watch = self.__watch
        taken = None if watch is None else copy.deepcopy(action)
        with self.__maker.streams or nullcontext():
            result = self.env.step(action)
        if result[2] or result[3]:  # the VecEnv keeps it as terminal_observation, and the reset may overwrite the env's buffer
            result = (copy.deepcopy(result[0]), *result[1:])
        if watch is not None:
            self.__compare(watch, taken, result)
        return result

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.__watch = None
        with self.__maker.streams or nullcontext():
            return self.env.reset(**kwargs)

    def drop_siblings(self) -> None:
        """End all siblings. The env does not change."""
        for sibling in self.__siblings.values():
            sibling.close()
        self.__siblings, self.__watch = {}, None

    def close(self) -> None:
        self.drop_siblings()
        super().close()

    def __begin_watch(self) -> None:
        """
        At the 1st, 2nd, 3rd, 5th, 8th, … fork of all siblings, make one more sibling, which repeats member 0's actions. Each
        number divides a Fibonacci number, so whatever the number of forks in an episode, an episode's last one is watched.
        """
        self.__forks_of_all += 1
        previous, self.__watch = self.__watch, None
        soon, later = self.__next_watches
        if self.__forks_of_all == soon:
            self.__next_watches = later, soon + later
            if self.__maker.watchable:
                self.__watch, self.__steps_of_watch = self.__maker(previous), 0

    def __compare(self, watch: Sibling, action: Any, result: Any) -> None:
        """Compare the watched sibling's step with member 0's. If a copy differs, siblings are forks from now on."""
        self.__steps_of_watch += 1
        try:
            again = shown(*watch.step(action))
        except Exception as error:
            again = {"exception": repr(error)}
        found = difference([shown(*result)], [again])
        self.__watch = None if found or result[2] or result[3] else watch
        if found is None:
            return
        found = f"played the same actions differently: {found}".replace("step 1", f"step {self.__steps_of_watch} after a fork")
        if watch.kind == "copied":
            self.__maker.take_forks(f"a copy {found}")
        elif self.__maker.is_alone:
            self.__error = self.__maker.not_exact(f"a forked process {found}")
        else:
            self.__maker.tell_shared(f"Something outside of {self.__maker.name} (a forked process {found})")

    def wrappers_above(self) -> list[str]:
        """
        Name the wrappers above this one that siblings would bypass. A process of a SubprocVecEnv offers no way to the
        outermost wrapper, so the garbage collector's objects are searched. Elsewhere, use :func:`layers_above`.
        """
        gc.collect()  # deletes wrappers that are not in use any more
        wrappers: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), gym.Wrapper)]
        above: list[Any] = [self]
        for layer in above:
            above += [one for one in wrappers if vars(one).get("env") is layer and all(one is not known for known in above)]
        return [type(layer).__name__ for layer in above[1:] if not is_recorder(type(layer))]

    def step_siblings(self, actions: Any, forks: Sequence[bool]) -> SiblingSteps | SiblingFailure:
        """
        Step every sibling once. The env does not change.

        :param actions: One action for each of the M siblings, ``(M, ...)``
        :param forks: For each of the M siblings, whether it forks from the env's current state before the step
        :return: The siblings' results, or the failure of one of them
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
                # copied, because some envs return a buffer that the next step overwrites
                observations.append(observation.copy() if type(observation) is np.ndarray else each(np.array, observation))
                rewards.append(float(reward))
                all_terminated.append(bool(terminated))
                all_truncated.append(bool(truncated))
                infos.append({key: value for key, value in (info or {}).items() if key != "episode"})
        except Exception as error:
            return SiblingFailure(member + 1, error)
        return steps

    def mask_siblings(self, wanted: list[int]) -> list[np.ndarray] | SiblingFailure:
        """The masks of these siblings from the env's ``action_masks()``, or the failure of one of them."""
        masks: list[np.ndarray] = []
        try:
            for member in wanted:
                masks.append(np.array(self.__siblings[member].get_wrapper_attr("action_masks")(), dtype=bool))
        except Exception as error:
            return SiblingFailure(wanted[len(masks)] + 1, error)
        return masks


def make_branchable(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """
    Put a :class:`BranchingWrapper` into an env's chain of wrappers, below the recorders at its top and above all others. So
    siblings write no episodes to a log, but have the env's time limit.

    ``HybridGRPO`` calls this for env ids, envs and ``DummyVecEnv``. For a ``SubprocVecEnv``, call it in the processes::

        make_vec_env("CartPole-v1", n_envs=4, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)

    :param env: The env. If it has recorders at its top, the new wrapper is put inside of them, in place. If it is branchable
        already, only its streams in place of process-wide generators begin anew
    :return: The branchable env
    :raises BranchingError: if the env cannot be branched
    :raises TypeError: if ``env`` is no env, for example its id
    """
    require_env(env)
    for layer in layers_of(env):
        if isinstance(layer, BranchingWrapper):
            layer.renew_streams()
            return env
    lowest: Any = None
    layer = env
    while is_recorder(type(layer)):
        lowest, layer = layer, layer.env  # type: ignore[attr-defined]
    branchable = BranchingWrapper(layer)
    if lowest is None:
        return branchable
    lowest.env = branchable
    return env


def layers_above(env: gym.Env[Any, Any]) -> list[str]:
    """Name the wrappers above an env's :class:`BranchingWrapper` that siblings would bypass, outermost first."""
    above = itertools.takewhile(lambda layer: not isinstance(layer, BranchingWrapper), layers_of(env))
    return [type(layer).__name__ for layer in above if not is_recorder(type(layer))]


def fork_env(env: gym.Env[Any, Any], n: int) -> list[Sibling]:
    """
    Copy an env in its present state, with its wrappers and its generators of random numbers. Nothing checks the copies here;
    :func:`check_branching` does.

    If the env holds an object that no rule copies, each copy is a forked process, which ``close()`` ends. Recorders at the top
    (such as ``Monitor``) are left out. A copy is not reset: its next ``step`` goes on from the env's state. The env does not
    change.

    :param env: Any gymnasium env
    :param n: Number of copies
    :return: n envs, each with ``step``, ``reset``, ``get_wrapper_attr`` and ``close``, and a ``kind``: "copied" or "forked"
    :raises BranchingError: if the env can be neither copied nor forked
    :raises TypeError: if ``env`` is no env, for example its id
    :raises ValueError: if ``n`` is negative
    """
    require_env(env)
    if n < 0:
        raise ValueError(f"n must be a number of copies, at least 0, got {n}.")
    maker = SiblingMaker(without_recorders(env), own=False)
    maker.own_models = maker.has_model  # nothing has checked whether the env changes its MjModel
    return [maker() for _ in range(n)]
