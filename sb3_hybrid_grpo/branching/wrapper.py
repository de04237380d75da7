"""The wrapper that lets siblings live beside an env."""

import gc
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.answers import SiblingFailure, SiblingSteps
from sb3_hybrid_grpo.branching.choice import Choice
from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.forks import ForkedEnv, ForkEngine
from sb3_hybrid_grpo.branching.mujoco_state import refuse_changes
from sb3_hybrid_grpo.branching.noise import NoiseWatch
from sb3_hybrid_grpo.branching.protocol import Engine, Snapshot
from sb3_hybrid_grpo.branching.recorders import is_recorder, layers_of, shortcuts_of
from sb3_hybrid_grpo.branching.trial import copies_are_exact
from sb3_hybrid_grpo.errors import BranchingError


_NOBODY_IN_PLACE = nullcontext()


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
        self._shortcuts = shortcuts_of(self)
        self._take(shortcut=True)
        try:
            self._choice = Choice(self.env)
        finally:
            self._take(shortcut=False)
        self._origin: Snapshot | None = None
        # a sibling is in one of the two: as an env of its own, or as a state of this env
        self._beside: dict[int, EnvCopy | ForkedEnv] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._aside: tuple[dict[int, EnvCopy | ForkedEnv], dict[int, Snapshot]] = {}, {}
        self._take_engine(self._choice.engine)

    def __setattr__(self, name: str, value: Any) -> None:
        """What a VecEnv sets on the outermost layer (``set_attr``) is meant for the env."""
        if name == "env" or name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.env, name, value)

    def _take_engine(self, engine: Engine) -> None:
        self._engine = engine
        self._noise = NoiseWatch(engine)
        self._forks = isinstance(engine, ForkEngine)
        self._copyable: bool | None = None  # until it is tried

    def check_siblings(self, resets: bool) -> SiblingFailure | None:
        """
        Show that siblings of this very env are exact, before there are any: by the next engine, if the first one's are not.

        :param resets: Whether siblings will reset by themselves
        :return: A failure if there is no such engine
        """
        self._take(shortcut=True)
        try:
            self._choice.check(resets)
        except Exception as error:
            return SiblingFailure.of(0, error)
        finally:
            self._take(shortcut=False)
        if self._choice.engine is not self._engine:
            self._take_engine(self._choice.engine)
        if self._choice.copies_differ:
            self._copyable = False
        return None

    def saw_noise(self) -> bool:
        """
        Find out whether the env draws random numbers while it steps.

        :return: Whether a step has done so since this was first asked
        """
        self._noise.watching = not self._noise.seen
        return self._noise.seen

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        if not self._noise.watching:
            return self.env.step(action)
        self._take(shortcut=True)
        try:
            self._noise.before_step()
        finally:
            self._take(shortcut=False)
        result = self.env.step(action)
        self._noise.after_step()
        return result

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._noise.before_reset()
        return self.env.reset(**kwargs)

    def close(self) -> None:
        self._beside, self._snapshots = {}, {}
        self.drop_aside()
        super().close()

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

    def step_siblings(
        self, actions: np.ndarray, forks: Collection[bool], keep: bool, reset_ended: bool = False
    ) -> SiblingSteps | SiblingFailure:
        """
        Step every sibling once, and leave the env as it was.

        :param actions: One action for each of the M siblings, ``(M, ...)``
        :param forks: Whether each sibling starts from the env's current state, M of them; the others go on from their own
        :param keep: Whether the siblings go on after this step (False saves the saving)
        :param reset_ended: Whether a sibling whose episode ends resets by itself
        :return: What the siblings saw, or which of them failed
        """
        steps = SiblingSteps([], [], [], [], {})
        observations, rewards, all_terminated, all_truncated, resets = steps
        env: Any
        member = 0
        try:
            copies, any_start, beside = keep or self._forks, True in forks, self._beside
            if self._copyable is None or (copies and any_start):
                self._copy_for([m for m, starts in enumerate(forks) if starts] if copies else [])
            in_place = [m not in beside or (starts and not copies) for m, starts in enumerate(forks)]
            with self._standing_still(any_start) if True in in_place else _NOBODY_IN_PLACE as origin:
                is_there = origin
                for member, (action, starts) in enumerate(zip(actions, forks)):  # noqa: B905  hot
                    if in_place[member]:
                        env, start = self.env, origin if starts else self._snapshots[member]
                        if start is not is_there:  # the first to start here need not be put where the env is
                            self._engine.restore(start)
                        is_there = None
                    else:
                        env = beside[member].env
                    observation, reward, terminated, truncated, _ = env.step(action)
                    observations.append(observation.copy() if type(observation) is np.ndarray else _copied(observation))
                    rewards.append(float(reward))
                    all_terminated.append(bool(terminated))
                    all_truncated.append(bool(truncated))
                    if reset_ended and (terminated or truncated):
                        resets[member] = _copied(env.reset()[0])
                    if keep and in_place[member]:
                        self._snapshots[member] = self._engine.resave(start, self._snapshots.get(member))
        except Exception as error:
            return SiblingFailure.of(member + 1, error)
        return steps

    def reset_siblings(self, seeds: list[int | None]) -> list[Any] | SiblingFailure:
        """
        Start an episode of its own in every sibling.

        :param seeds: One seed a sibling; None: go on with the sibling's own random numbers
        :return: The siblings' first observations, or which of them failed
        """
        observations = []
        member = 0
        try:
            self._copy_for([m for m, seed in enumerate(seeds) if seed is not None])
            model = self._engine.shared_contents()
            with self._standing_still(as_start=True) as origin:
                for member, seed in enumerate(seeds):
                    if member in self._beside:
                        observations.append(_copied(self._beside[member].env.reset(seed=seed)[0]))
                        refuse_changes(self.env, model, self._engine.shared_contents(), "reset")
                        continue
                    start = self._snapshots[member] if seed is None else origin
                    self._engine.restore(start)
                    observations.append(_copied(self.env.reset(seed=seed)[0]))
                    refuse_changes(self.env, model, self._engine.shared_contents(), "reset")
                    self._snapshots[member] = self._engine.resave(start, self._snapshots.get(member))
        except Exception as error:
            return SiblingFailure.of(member + 1, error)
        return observations

    def mask_siblings(self, wanted: list[int]) -> list[np.ndarray] | SiblingFailure:
        """
        Ask siblings which actions are valid in their states.

        :param wanted: Which siblings
        :return: What the env's ``action_masks()`` says in the state of each
        """
        masks = []
        member = 0
        try:
            with nullcontext() if self._beside.keys() >= set(wanted) else self._standing_still(as_start=False):
                for member in wanted:
                    env: Any = self._beside[member].env if member in self._beside else self.env
                    if env is self.env:
                        self._engine.restore(self._snapshots[member])
                    masks.append(np.array(env.get_wrapper_attr("action_masks")(), dtype=bool))
        except Exception as error:
            return SiblingFailure.of(member + 1, error)
        return masks

    def exchange_siblings(self) -> None:
        """Put the siblings aside, and take those that were aside in their place."""
        (self._beside, self._snapshots), self._aside = self._aside, (self._beside, self._snapshots)

    def drop_aside(self) -> None:
        """Forget the siblings that were put aside."""
        self._aside = {}, {}

    def _copy_for(self, members: list[int]) -> None:
        """Make a copy of the env for siblings that start from here, if copies of this env are exact."""
        self._take(shortcut=True)
        try:
            if self._copyable is None:
                self._choice.warn_of_costs()
                self._copyable = self._forks or copies_are_exact(self.env, self._engine)
            old = {member: self._beside.pop(member, None) for member in members}
            for member, previous in old.items() if self._copyable else ():
                self._snapshots.pop(member, None)
                if self._forks:
                    self._beside[member] = ForkedEnv(self.env, previous if isinstance(previous, ForkedEnv) else None)
                else:
                    spare = previous if isinstance(previous, EnvCopy) else None
                    self._beside[member] = EnvCopy(self.env, spare, self._engine.own_models)
        except BranchingError:
            raise
        except Exception:  # CannotCopyError above all: the env holds something that it did not hold before
            if self._forks:
                raise
            self._copyable = False
        finally:
            self._take(shortcut=False)

    @contextmanager
    def _standing_still(self, as_start: bool) -> Iterator[Snapshot]:
        """
        The env is after the block what it was before, whatever happens in between.

        :param as_start: Whether siblings start from here, or only go on with what they started from before
        """
        self._take(shortcut=True)
        try:
            if as_start or self._origin is None:
                origin = self._engine.save(self._origin)
            else:
                origin = self._engine.resave(self._origin, self._origin)
            self._origin = origin
            try:
                yield origin
            finally:
                try:
                    self._engine.restore(origin)
                except KeyboardInterrupt:
                    self._engine.restore(origin)  # again, from its beginning
                    raise
        finally:
            self._take(shortcut=False)

    def _take(self, shortcut: bool) -> None:
        """Link the chain of wrappers past those that siblings pass by, or through them again."""
        for wrapper, above, below in self._shortcuts:
            wrapper.env = below if shortcut else above


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


def _copied(observation: Any) -> Any:
    """Some envs return a buffer of their own, which the next restore overwrites."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)
