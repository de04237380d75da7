"""What the VecEnv wrappers do to an observation, done to the siblings' without a trace in the wrappers."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_hybrid_grpo.errors import BranchingError

Observations = Any
"""A batch of observations: an array, or a dict of arrays."""


class Rows(NamedTuple):
    """What siblings saw in a step, sibling by sibling: M·E rows."""

    observations: Observations
    """The observations reached, before any reset or fork."""
    rewards: np.ndarray
    dones: np.ndarray
    """Whether a sibling's own episode ended."""
    infos: list[dict[str, Any]]
    """With ``"terminal_observation"`` where an episode ended."""

    def showing(self, observations: Observations) -> "Rows":
        """The rows with these, the last ones of episodes in the infos included."""
        for row in np.flatnonzero(self.dones) if self.dones.any() else ():
            self.infos[row]["terminal_observation"] = row_of(observations, int(row))
        return self._replace(observations=observations)


class Stage:
    """One VecEnv wrapper as siblings see it. By itself it changes nothing: recorders and checks."""

    def __init__(self, wrapper: Any, n_siblings: int) -> None:
        self.wrapper, self.n_siblings = wrapper, n_siblings

    def fork(self, forks: np.ndarray) -> None:
        """Give these siblings, ``(M, E)``, the state of member 0."""

    def step(self, rows: Rows) -> Rows:
        """Transform what siblings saw. The infos are changed in place."""
        return rows

    def preview(self, rows: Rows) -> Rows:
        """What :meth:`step` would return now; nothing is kept."""
        return self.step(rows)


class Normalize(Stage):
    """VecNormalize, with the statistics in force now."""

    def step(self, rows: Rows) -> Rows:
        observations = self.wrapper.normalize_obs(rows.observations)
        return rows.showing(observations)._replace(rewards=self.wrapper.normalize_reward(rows.rewards))


class Transpose(Stage):
    """VecTransposeImage."""

    def step(self, rows: Rows) -> Rows:
        return rows.showing(self.wrapper.transpose_observations(rows.observations))


class ExtractKey(Stage):
    """VecExtractDictObs."""

    def step(self, rows: Rows) -> Rows:
        return rows.showing(rows.observations[self.wrapper.key])


class FrameStack(Stage):
    """VecFrameStack, with a stack of frames of each sibling's own."""

    def __init__(self, wrapper: VecFrameStack, n_siblings: int) -> None:
        super().__init__(wrapper, n_siblings)
        self.stacks = {key: copy.copy(stack) for key, stack in self._of_member_0().items()}
        for stack in self.stacks.values():
            stack.stacked_obs = np.concatenate([stack.stacked_obs] * n_siblings)

    def _of_member_0(self) -> dict[str | None, StackedObservations[Any]]:
        stacked = self.wrapper.stacked_obs
        subs: dict[str | None, StackedObservations[Any]] | None = getattr(stacked, "sub_stacked_observations", None)
        return subs or {None: stacked}

    def fork(self, forks: np.ndarray) -> None:
        _, envs = np.nonzero(forks)
        for key, stack in self._of_member_0().items():
            self.stacks[key].stacked_obs[forks.reshape(-1)] = stack.stacked_obs[envs]

    def step(self, rows: Rows) -> Rows:
        observations = rows.observations
        for key, stack in self.stacks.items():
            frames = observations if key is None else observations[key]
            axis = stack.stack_dimension
            kept = np.take(stack.stacked_obs, range(frames.shape[axis], stack.stacked_obs.shape[axis]), axis=axis)
            stack.stacked_obs = np.concatenate([kept, frames], axis=axis)
        read = {key: stack.stacked_obs.copy() for key, stack in self.stacks.items()}
        return rows.showing(read[None] if None in read else read)

    def preview(self, rows: Rows) -> Rows:
        before = {key: stack.stacked_obs for key, stack in self.stacks.items()}
        seen = self.step(rows)
        for key, frames in before.items():
            self.stacks[key].stacked_obs = frames
        return seen


class Stateless(Stage):
    """A wrapper of the user's that keeps no state from step to step: its ``step_wait`` is called with siblings' rows."""

    def step(self, rows: Rows) -> Rows:
        n_envs = self.wrapper.num_envs
        parts = []
        for m in range(self.n_siblings):
            mine = slice(m * n_envs, (m + 1) * n_envs)
            below = _StepDone(self.wrapper.venv, each(lambda its, mine=mine: its[mine], rows.observations), rows, mine)
            wrapper = object.__new__(type(self.wrapper))
            wrapper.__dict__.update(vars(self.wrapper) | {"venv": below})
            parts.append(wrapper.step_wait())
        observations = each(lambda *its: np.concatenate(its), *(part[0] for part in parts))
        return Rows(
            observations,
            np.concatenate([part[1] for part in parts]),
            np.concatenate([part[2] for part in parts]),
            [info for part in parts for info in part[3]],
        )


class _StepDone:
    """A VecEnv whose step has been taken."""

    def __init__(self, venv: VecEnv, observations: Observations, rows: Rows, mine: slice) -> None:
        self._venv = venv
        self._step = observations, rows.rewards[mine], rows.dones[mine], rows.infos[mine]

    def step_wait(self) -> Any:
        return self._step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._venv, name)


_STAGES: dict[type[VecEnvWrapper], type[Stage]] = {
    VecNormalize: Normalize,
    VecFrameStack: FrameStack,
    VecTransposeImage: Transpose,
    VecExtractDictObs: ExtractKey,
    VecMonitor: Stage,
    VecVideoRecorder: Stage,
    VecCheckNan: Stage,  # what a sibling gives is always checked
}
_OWN_METHODS = ("step", "step_async", "step_wait", "reset")


def register_vec_wrapper(wrapper_class: type[VecEnvWrapper]) -> None:
    """
    Declare that a VecEnv wrapper of one's own keeps no state from step to step: what it makes of observations, rewards and
    infos depends on nothing else. Siblings' rows then go through its ``step_wait``, too.

    Example::

        class ShapedReward(VecEnvWrapper):
            def reset(self):
                return self.venv.reset()

            def step_wait(self):
                observations, rewards, dones, infos = self.venv.step_wait()
                return observations, rewards + 1.0, dones, infos

        register_vec_wrapper(ShapedReward)

    :param wrapper_class: The class; its subclasses are meant, too, where they override neither ``step_wait`` nor ``reset``
    :raises TypeError: for something else than a subclass of VecEnvWrapper
    """
    if not (isinstance(wrapper_class, type) and issubclass(wrapper_class, VecEnvWrapper)):
        raise TypeError(f"wrapper_class must be a subclass of VecEnvWrapper, got {wrapper_class!r}.")
    _STAGES[wrapper_class] = Stateless


def _stage_of(kind: type[VecEnvWrapper]) -> type[Stage] | None:
    """What stands for a wrapper: its own class's stage, or that of a base of which it overrides nothing that counts."""
    for base in kind.__mro__:
        if base in _STAGES:
            same = all(getattr(kind, name) is getattr(base, name) for name in _OWN_METHODS)
            return _STAGES[base] if same else None
    return None


def stages_of(env: VecEnv, n_siblings: int) -> list[Stage]:
    """Find what the siblings' observations and rewards go through."""
    stages: list[Stage] = []
    while isinstance(env, VecEnvWrapper):
        stage = _stage_of(type(env))
        if stage is None:
            known = ", ".join(sorted(kind.__name__ for kind in _STAGES))
            raise ValueError(
                f"Received an env wrapped in {type(env).__name__}; what it does to the observations and rewards of siblings "
                f"is not known. Known VecEnv wrappers: {known}. If it keeps no state from step to step, say so: "
                f"register_vec_wrapper({type(env).__name__}), from sb3_hybrid_grpo.branching. Else write it as a "
                "gymnasium.Wrapper around each env, or use n_samples=1 (plain PPO)."
            )
        stages.append(stage(env, n_siblings))
        env = env.venv
    return stages[::-1]


def is_truncated(info: dict[str, Any]) -> bool:
    """Whether an episode that ended was cut off."""
    return bool(info.get("TimeLimit.truncated", False)) and info.get("terminal_observation") is not None


def row_of(observations: Observations, row: int) -> Any:
    """Take one observation out of a batch."""
    return each(lambda values: values[row].copy(), observations)


def check_numbers(observations: Observations, rewards: np.ndarray, n_envs: int, step: int) -> None:
    """Look for a NaN. Siblings pass by VecCheckNan, and one in them would reach the policy through the loss alone."""
    named = {f"observation {key!r}": its for key, its in observations.items()} if isinstance(observations, dict) else {}
    for name, values in {"reward": rewards, **(named or {"observation": observations})}.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            row = int(np.flatnonzero(np.isnan(values.reshape(len(values), -1)).any(axis=1))[0])
            raise BranchingError(
                f"The {name} of member {row // n_envs + 1} (a sibling) of env {row % n_envs} is NaN at step {step} of the "
                f"training: {values[row]}. Find out what the env does with the actions it was given; VecCheckNan finds a NaN "
                "of member 0."
            )


def each(function: Callable[..., Any], *batches: Observations) -> Observations:
    """Apply a function to arrays, or key by key to dicts of arrays."""
    if isinstance(batches[0], dict):
        return {key: function(*(batch[key] for batch in batches)) for key in batches[0]}
    return function(*batches)
