"""The wrapper that lets siblings live beside an env."""

import copy
import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.answers import SiblingFailure, SiblingSteps
from sb3_hybrid_grpo.branching.choice import Choice
from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.forks import ForkedEnv, ForkEngine
from sb3_hybrid_grpo.branching.noise import NoiseWatch
from sb3_hybrid_grpo.branching.protocol import Engine, Snapshot
from sb3_hybrid_grpo.branching.recorders import is_recorder, shortcuts_of
from sb3_hybrid_grpo.branching.trial import copies_are_exact
from sb3_hybrid_grpo.errors import BranchingError


_NOBODY_IN_PLACE = nullcontext()
_OF_WRAPPERS = frozenset(vars(gym.Wrapper(gym.Env())))
"""Attributes of gymnasium's wrappers. Those of ours have names that Python mangles, as no env's are."""


class BranchingWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """
    Lets siblings live beside an env: other members of the env's group. ``step`` and ``reset`` are those of the env.

    A sibling that goes on for more than a step is a copy of the env, where copies of this env are shown to be exact; that
    takes a few steps once. Else it is a snapshot, stepped in the env's own simulator while the env itself stands still. The
    siblings of an env of which no snapshot can be made are forks of its process.

    :param env: The env, without the recorders (:class:`Monitor` and its like) that siblings must not write to
    :raises BranchingError: if the env cannot be branched
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.__shortcuts = shortcuts_of(self)
        self.__take(shortcut=True)
        try:
            self.__choice = Choice(self.env)
        finally:
            self.__take(shortcut=False)
        self.__origin: Snapshot | None = None
        # a sibling is in one of the two: as an env of its own, or as a state of this env
        self.__beside: dict[int, EnvCopy | ForkedEnv] = {}
        self.__snapshots: dict[int, Snapshot] = {}
        self.__take_engine(self.__choice.engine)

    def __setattr__(self, name: str, value: Any) -> None:
        """What a VecEnv sets on the outermost layer (``set_attr``) is meant for the env."""
        if name in _OF_WRAPPERS or name.startswith("_BranchingWrapper__") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.env, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has no siblings yet: how they live cannot be pickled."""
        return type(self), (self.env,), {name: vars(self)[name] for name in _OF_WRAPPERS - {"env"}}

    @property
    def branching_choice(self) -> Choice:
        """Why it is branched as it is."""
        return self.__choice

    @property
    def branching_engine(self) -> Engine:
        """What saves and restores the env."""
        return self.__engine

    @property
    def siblings_beside(self) -> dict[int, EnvCopy | ForkedEnv]:
        """Siblings that are envs of their own, by their number."""
        return self.__beside

    @property
    def siblings_are_copied(self) -> bool:
        """Whether siblings that go on for more than a step are copies, as far as is known."""
        return bool(self.__copyable) and not self.__forks

    def __take_engine(self, engine: Engine) -> None:
        self.__engine = engine
        self.__noise = NoiseWatch(engine)
        self.__forks = isinstance(engine, ForkEngine)
        self.__copyable: bool | None = None  # until it is tried

    def check_siblings(self) -> SiblingFailure | None:
        """
        Show that siblings of this very env are exact, before there are any: by the next engine, if the first one's are not.

        :return: A failure if there is no such engine
        """
        self.__take(shortcut=True)
        try:
            self.__choice.check(resets=False)
        except Exception as error:
            return SiblingFailure.of(0, error)
        finally:
            self.__take(shortcut=False)
        if self.__choice.engine is not self.__engine:
            self.__take_engine(self.__choice.engine)
        if self.__choice.copies_differ:
            self.__copyable = False
        return None

    def saw_noise(self) -> bool:
        """
        Find out whether the env draws random numbers while it steps.

        :return: Whether a step has done so since this was first asked
        """
        self.__noise.watching = not self.__noise.seen
        return self.__noise.seen

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        watched = self.__noise.watching
        if watched:
            self.__take(shortcut=True)
            try:
                self.__noise.before_step()
            finally:
                self.__take(shortcut=False)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if watched:
            self.__noise.after_step()
        if terminated or truncated:  # to be kept, while the env writes the next one where this one may lie
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.__noise.before_reset()
        return self.env.reset(**kwargs)

    def close(self) -> None:
        self.__beside, self.__snapshots = {}, {}
        super().close()

    def wrappers_above(self) -> list[str]:
        """
        Name the wrappers above this one that siblings would escape. In a process of a SubprocVecEnv nothing leads to the
        outermost of them; :func:`~sb3_hybrid_grpo.branching.branchable.layers_above` is for where something does.

        :return: The names of their classes, innermost first
        """
        gc.collect()  # wrappers that nobody holds any more
        wrappers: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), gym.Wrapper)]
        above: list[Any] = [self]
        for layer in above:
            above += [one for one in wrappers if vars(one).get("env") is layer and all(one is not known for known in above)]
        return [type(layer).__name__ for layer in above[1:] if not is_recorder(layer)]

    def step_siblings(self, actions: np.ndarray, forks: Collection[bool], keep: bool) -> SiblingSteps | SiblingFailure:
        """
        Step every sibling once, and leave the env as it was.

        :param actions: One action for each of the M siblings, ``(M, ...)``
        :param forks: Whether each sibling starts from the env's current state, M of them; the others go on from their own
        :param keep: Whether the siblings go on after this step (False saves the saving)
        :return: What the siblings saw, or which of them failed
        """
        steps = SiblingSteps([], [], [], [], [])
        observations, rewards, all_terminated, all_truncated, infos = steps
        env: Any
        member = 0
        try:
            copies, any_start, beside = keep or self.__forks, True in forks, self.__beside
            if self.__copyable is None or (copies and any_start):
                self.__copy_for([m for m, starts in enumerate(forks) if starts] if copies else [])
            in_place = [m not in beside or (starts and not copies) for m, starts in enumerate(forks)]
            with self.standing_still(any_start) if True in in_place else _NOBODY_IN_PLACE as origin:
                is_there = origin
                for member, (action, starts) in enumerate(zip(actions, forks)):  # noqa: B905  hot
                    if in_place[member]:
                        env, start = self.env, origin if starts else self.__snapshots[member]
                        if start is not is_there:  # the first to start here need not be put where the env is
                            self.__engine.restore(start)
                        is_there = None
                    else:
                        env = beside[member].env
                    observation, reward, terminated, truncated, info = env.step(action)
                    observations.append(observation.copy() if type(observation) is np.ndarray else _copied(observation))
                    rewards.append(float(reward))
                    all_terminated.append(bool(terminated))
                    all_truncated.append(bool(truncated))
                    infos.append(copy.deepcopy(info) if in_place[member] else info)
                    if keep and in_place[member]:
                        self.__snapshots[member] = self.__engine.resave(start, self.__snapshots.get(member))
        except Exception as error:
            return SiblingFailure.of(member + 1, error)
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
            with nullcontext() if self.__beside.keys() >= set(wanted) else self.standing_still(as_start=False):
                for member in wanted:
                    env: Any = self.__beside[member].env if member in self.__beside else self.env
                    if env is self.env:
                        self.__engine.restore(self.__snapshots[member])
                    masks.append(np.array(env.get_wrapper_attr("action_masks")(), dtype=bool))
        except Exception as error:
            return SiblingFailure.of(member + 1, error)
        return masks

    def __copy_for(self, members: list[int]) -> None:
        """Make a copy of the env for siblings that start from here, if copies of this env are exact."""
        self.__take(shortcut=True)
        try:
            if self.__copyable is None:
                self.__choice.warn_of_costs()
                self.__copyable = self.__forks or copies_are_exact(self.env, self.__engine)
            old = {member: self.__beside.pop(member, None) for member in members}
            for member, previous in old.items() if self.__copyable else ():
                self.__snapshots.pop(member, None)
                if self.__forks:
                    self.__beside[member] = ForkedEnv(self.env, previous if isinstance(previous, ForkedEnv) else None)
                else:
                    spare = previous if isinstance(previous, EnvCopy) else None
                    self.__beside[member] = EnvCopy(self.env, spare, self.__engine.own_models)
        except BranchingError:
            raise
        except Exception:  # CannotCopyError above all: the env holds something that it did not hold before
            if self.__forks:
                raise
            self.__copyable = False
        finally:
            self.__take(shortcut=False)

    @contextmanager
    def standing_still(self, as_start: bool) -> Iterator[Snapshot]:
        """
        The env is after the block what it was before, whatever happens in between.

        :param as_start: Whether siblings start from here, or only go on with what they started from before
        """
        self.__take(shortcut=True)
        try:
            if as_start or self.__origin is None:
                origin = self.__engine.save(self.__origin)
            else:
                origin = self.__engine.resave(self.__origin, self.__origin)
            self.__origin = origin
            try:
                yield origin
            finally:
                try:
                    self.__engine.restore(origin)
                except KeyboardInterrupt:
                    self.__engine.restore(origin)  # again, from its beginning
                    raise
        finally:
            self.__take(shortcut=False)

    def __take(self, shortcut: bool) -> None:
        """Link the chain of wrappers past those that siblings pass by, or through them again."""
        for wrapper, above, below in self.__shortcuts:
            wrapper.env = below if shortcut else above


def _copied(observation: Any) -> Any:
    """Some envs return a buffer of their own, which the next restore overwrites."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)
