"""Siblings: copies of an env, or forked processes; and the choice between them."""

import contextlib
import itertools
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.engines import CannotCopyError, MemberState, module_of, never
from sb3_hybrid_grpo.branching.exactness import examine
from sb3_hybrid_grpo.branching.forked_env import ForkedEnv, HungForkError
from sb3_hybrid_grpo.branching.global_state import own_streams, process_wide_generators, surroundings
from sb3_hybrid_grpo.branching.wrapper_chain import innermost, layers_of, make_generators, named
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.notices import notice


class SteppedEnv:
    """
    An env that shares objects with other envs, and is stepped with its own state of them.

    :param env: The env
    :param shared_state: Its state of the shared objects; None if it shares none
    """

    def __init__(self, env: Any, shared_state: MemberState | None) -> None:
        self.env: Any = env
        self.shared_state: Any = shared_state or contextlib.nullcontext()

    def step(self, action: Any) -> Any:
        with self.shared_state:
            return self.env.step(action)

    def reset(self, **keywords: Any) -> Any:
        with self.shared_state:
            return self.env.reset(**keywords)

    def get_wrapper_attr(self, name: str) -> Any:
        found = self.env.get_wrapper_attr(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.shared_state:
                return found(*arguments, **keywords)

        return call if callable(found) else found


class CopiedEnv(SteppedEnv):
    """
    A copy of an env in its present state, with its wrappers and generators of random numbers. It shares only objects that
    never change with the env. Recorders are left out.

    :param env: The env
    :param previous: An earlier copy that is not needed any more: its simulators and generators are overwritten
    :param own_models: Whether the copy needs its own MjModel, because the env changes the model
    :param streams: The env's streams in place of generators that it shares
    :raises CannotCopyError: if the env holds an object that no rule copies
    """

    kind = "copied"

    def __init__(
        self, env: gym.Env[Any, Any], previous: Any = None, own_models: bool = False, streams: MemberState | None = None
    ) -> None:
        reuse = previous.natives if isinstance(previous, CopiedEnv) else None
        streams = streams or _NO_STREAMS
        copier = Copier(reuse, own_models, [one.obj for one in streams.shared])
        made = copier.whole(env)
        self.natives: dict[int, tuple[Any, Any]] = copier.natives
        self.alive = copier.alive
        shared = [*(one for one, _ in copier.swapped), *streams.shared]
        states = [*(state for _, state in copier.swapped), *streams.states]
        super().__init__(made, MemberState(shared, states) if shared else None)
        if not shared:  # faster
            self.step, self.reset = made.step, made.reset  # type: ignore[method-assign]

    def close(self) -> None:
        """Do nothing: the env closes the objects that a copy shares with it."""

    def __getattr__(self, name: str) -> Any:
        """Other attributes of the copied env: its spaces, its spec."""
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


_NO_STREAMS = MemberState([], [])
Sibling = CopiedEnv | ForkedEnv
"""A copy or fork of an env, which is stepped beside the env."""


_TOLD: weakref.WeakValueDictionary[tuple[int, str], Any] = weakref.WeakValueDictionary()
"""By ids and topics of notices: envs, and classes of envs of one process, whose user was told."""


class SiblingMaker:
    """Makes siblings of an env: copies if all its objects can be copied and the copies are exact, else forks."""

    def __init__(self, env: gym.Env[Any, Any], own: bool = True) -> None:
        self.env, self.name = env, named(env)
        self.forks, self.own_models, self.watchable = False, False, False
        self.is_alone = True
        """Whether it is the only env of its process."""
        self._is_checking = False
        """Whether this is the copy in the process of the check, which gives no notices."""
        self.reasons: list[str] = []
        """Why copies cannot be used."""
        self.streams: MemberState | None = None
        copier = self._try_to_copy()
        self.has_model = any(module_of(type(one)).startswith("mujoco.") for one, _ in copier.natives.values())
        self.around = surroundings(copier.originals)
        self._take_streams(self.around.generators, own)
        self.noisy: bool | None = None
        """Whether the first steps of the check drew random numbers; None without a check."""

    def _try_to_copy(self) -> Copier:
        """Copy the env as it is now, and take forks if that fails."""
        copier = Copier()
        try:
            copier.whole(self.env)
        except Exception as error:
            self.take_forks(self._reason(error))
            copier.originals += layers_of(self.env)
        return copier

    def _reason(self, error: Exception) -> str:
        if isinstance(error, RecursionError):
            return "it holds a chain of references that is too long for Python's recursion limit"
        if not isinstance(error, CannotCopyError):
            return f"copying it raised {error!r}"
        path = path_along(self.env, error.holders)
        if error.advice:
            message = f"{self.name} cannot be branched: {path} {error.reason}. {error.advice}, or use n_samples=1 (plain PPO)."
            raise BranchingError(message) from error
        return f"{path} {error.reason}"

    def _take_streams(self, names: Iterable[str], own: bool = True) -> None:
        known = self.around.generators | self.around.spaces | process_wide_generators()
        streams = own_streams([known[name] for name in names], own)
        if self.streams is not None:
            streams = MemberState(self.streams.shared + streams.shared, self.streams.states + streams.states)
        self.streams = streams if streams.shared else None

    def renew_streams(self) -> None:
        """Begin the env's streams anew, in the generators' present states."""
        if self.streams is not None:
            self.streams = own_streams(one.obj for one in self.streams.shared)

    def take_forks(self, reason: str) -> None:
        """Make forks from now on, for this reason; raise an error if processes cannot be forked."""
        self.reasons.append(reason)
        self.forks = True
        if not hasattr(os, "fork"):
            raise self.not_exact(reason)

    def __call__(self, previous: Sibling | None = None) -> Sibling:
        """A sibling in the env's present state."""
        if not self.forks:
            try:
                return CopiedEnv(self.env, previous, self.own_models, self.streams)
            except Exception as error:  # the env now holds an object that cannot be copied
                self.take_forks(self._reason(error))
        self._tell_once("forks", self.why_forks())
        return ForkedEnv(self.env, previous, self.streams)

    def _tell_once(self, topic: str, message: str) -> None:
        """Give a notice once: for this env, or for all envs of its class if the process has several envs."""
        told = self.env if self.is_alone else type(innermost(self.env))
        if _TOLD.get((id(told), topic)) is not told and not self._is_checking:
            _TOLD[id(told), topic] = told
            notice(message)

    def why_forks(self) -> str:
        """Why copies cannot be used, and what forks cost."""
        return (
            f"Each sibling of {self.name} is a process forked from the env's, and a fork takes milliseconds "
            f"(check_branching(env) measures how many). Copies, which are faster, cannot be used: {'; '.join(self.reasons)}."
        )

    def check(self, shared: dict[str, Any] | None) -> None:
        """Check that siblings of this env are exact: copies, or else forks."""
        self.is_alone, shared = shared is None, shared or {}
        make_generators(self.env)
        if not self.forks:  # the reset may have made objects that cannot be copied
            self._try_to_copy()
        while hasattr(os, "fork"):
            try:
                found = examine(SteppedEnv(self.env, self.streams), self._make_for_check, self.around, shared)
            except HungForkError as error:
                unchecked = f"Whether siblings of {self.name} are exact could not be checked before the training. {error}"
                self._tell_once("unchecked", unchecked)
                return
            if found.draws:
                self._take_streams(found.draws)
            elif found.difference is not None and self.has_model and not self.own_models and not self.forks:
                self.own_models = True
            elif found.difference is not None and not self.forks:
                self.take_forks(found.difference)
            else:
                break
        else:
            return
        self.noisy = found.noisy
        self.watchable = found.reproducible
        if found.difference is not None or (found.own_difference is not None and self.around.refused is not None):
            raise self.not_exact(found.difference or f"its code uses {self.around.refused}, which forked processes share")
        if found.error is not None:
            self._tell_once(
                "unchecked",
                f"Whether siblings of {self.name} are exact could not be checked before the training: the env raised "
                f"{found.error} when it played random actions. If only some actions are valid, give the env action_masks(), "
                "as for sb3-contrib's MaskablePPO.",
            )
        if found.own_difference is not None:
            self._tell_once(
                "not reproducible",
                f"{self.name} plays the same actions differently in two exact copies of its process ({found.own_difference}): "
                "it reads a clock, or draws random numbers without a seed, so members do not meet the same noise. Draw from "
                "self.np_random, which reset(seed=...) seeds, and count steps instead of reading a clock.",
            )
        if found.shared:
            self.tell_shared(min((_path_to(self.env, shared[key]) for key in found.shared), key=len))

    def tell_shared(self, name: str) -> None:
        """Say that several envs share something, and end the watch: siblings and member 0 are known to differ."""
        self.watchable = False
        notice(
            f"{name[0].upper()}{name[1:]} is shared by several envs and changes when one of them steps. Siblings have copies "
            "of it, without other envs' changes. Give each env its own, or put the envs into a SubprocVecEnv."
        )

    def _make_for_check(self, previous: Sibling | None) -> Sibling:
        self._is_checking = True
        return self(previous)

    def not_exact(self, found: str) -> BranchingError:
        """The error for an env of which neither copies nor forks can be used."""
        return BranchingError(
            f"{self.name} cannot be branched: {'; '.join(dict.fromkeys([*self.reasons, found]))}. It keeps state that copies "
            "and forked processes share with it (another process, a file, shared memory), or a registered function copies it "
            "wrongly. Keep all state in the env, give it the two methods of sb3_hybrid_grpo.branching.SupportsBranching, or "
            "use n_samples=1 (plain PPO)."
        )


def path_along(env: gym.Env[Any, Any], holders: Sequence[Any]) -> str:
    """
    The path of attributes from an env to an object. It ends at an object of a library, whose internals users do not know.

    :param env: The env
    :param holders: The object, its holder, the holder's holder, and so on up to the env
    """
    layers = list(layers_of(env))
    own = {module_of(type(layer)).split(".")[0] for layer in layers}
    chain = list(itertools.takewhile(lambda one: all(one is not layer for layer in layers), holders))
    chain = [*holders[len(chain) : len(chain) + 1], *reversed(chain)] or [layers[-1]]
    path = type(chain[0]).__name__
    for holder, one in itertools.pairwise(chain):
        if not (isinstance(holder, dict | list | tuple) or module_of(type(holder)).split(".")[0] in own):
            return f"an object in {path}"
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list | tuple) else ()
        named = [(f"[{key!r}]", value) for key, value in items]
        named += [(f".{name}", value) for name, value in getattr(holder, "__dict__", {}).items()]
        path += next((name for name, value in named if value is one), "")
    return path


def _path_to(env: gym.Env[Any, Any], sought: Any) -> str:
    class Finder(Copier):
        """Stops when it meets the object."""

        def __call__(self, obj: Any) -> Any:
            return super().__call__(obj) if obj is not sought else never("")(self, obj)

    try:
        Finder().whole(env)
    except CannotCopyError as error:
        return path_along(env, [sought, *error.holders])
    return path_along(env, [])
