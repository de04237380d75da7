"""Apply VecEnv wrappers to the siblings' observations and rewards, without a change of the wrappers' state."""

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
    """Results of a step: of the siblings, sibling by sibling, M·E rows; or of member 0 in E envs."""

    observations: Observations
    """The next observations, before any reset or fork."""
    rewards: np.ndarray
    dones: np.ndarray
    """Whether the member's own episode ended."""
    infos: list[dict[str, Any]]
    """With ``"terminal_observation"`` where an episode ended."""

    def showing(self, observations: Observations) -> "Rows":
        """The rows with these observations, also as ``"terminal_observation"`` in the infos."""
        for row in np.flatnonzero(self.dones) if self.dones.any() else ():
            self.infos[row]["terminal_observation"] = row_of(observations, int(row))
        return self._replace(observations=observations)


class Stage:
    """
    Applies a VecEnv wrapper to the siblings' rows: it calls ``step_wait`` of a temporary shallow copy of the wrapper, so that
    the wrapper itself does not change.
    """

    def __init__(self, wrapper: Any, n_siblings: int) -> None:
        self.wrapper = wrapper
        self.own: dict[str, Any] = {}
        """Attributes that replace the wrapper's in the copy."""

    def fork(self, forks: np.ndarray) -> None:
        """Give these siblings, ``(M, E)``, the wrapper's state for member 0."""

    def step(self, rows: Rows) -> Rows:
        """Transform the siblings' results. The infos are changed in place."""
        # dones are hidden: where an episode ends, a wrapper expects the next episode's first observation
        seen = self._step_wait(rows._replace(dones=np.zeros_like(rows.dones)))
        return rows.showing(seen.observations)._replace(rewards=seen.rewards)

    def preview(self, rows: Rows) -> Rows:
        """Return the result of :meth:`step`, and keep no state."""
        before = copy.deepcopy(self.own)
        seen, self.own = self.step(rows), before
        return seen

    def _step_wait(self, rows: Rows) -> Rows:
        wrapper = object.__new__(type(self.wrapper))
        wrapper.__dict__.update(vars(self.wrapper) | self.own | {"venv": _StepDone(self.wrapper.venv, rows)})
        return Rows(*wrapper.step_wait())


class _StepDone:
    """A VecEnv whose ``step_wait`` returns given rows."""

    def __init__(self, venv: VecEnv, rows: Rows) -> None:
        self._venv, self._rows = venv, rows

    def step_wait(self) -> Rows:
        return self._rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._venv, name)


class Normalize(Stage):
    """VecNormalize, with its present statistics, which siblings do not change."""

    def __init__(self, wrapper: VecNormalize, n_siblings: int) -> None:
        super().__init__(wrapper, n_siblings)
        self.own = {"training": False, "returns": np.zeros(n_siblings * wrapper.num_envs)}


class FrameStack(Stage):
    """VecFrameStack, with a stack of frames for each sibling."""

    def __init__(self, wrapper: VecFrameStack, n_siblings: int) -> None:
        super().__init__(wrapper, n_siblings)
        self.own = {"stacked_obs": copy.deepcopy(wrapper.stacked_obs)}
        for stack in _stacks(self.own["stacked_obs"]):
            stack.stacked_obs = np.concatenate([stack.stacked_obs] * n_siblings)

    def fork(self, forks: np.ndarray) -> None:
        _, envs = np.nonzero(forks)
        for mine, theirs in zip(_stacks(self.own["stacked_obs"]), _stacks(self.wrapper.stacked_obs), strict=True):
            mine.stacked_obs = mine.stacked_obs.copy()  # the last step returned this array
            mine.stacked_obs[forks.reshape(-1)] = theirs.stacked_obs[envs]


def _stacks(stacked: StackedObservations[Any]) -> list[Any]:
    """The stack of frames, or one for each key."""
    subs: dict[str, Any] | None = getattr(stacked, "sub_stacked_observations", None)
    return list(subs.values()) if subs else [stacked]


class Stateless(Stage):
    """A user's wrapper that keeps no state between steps. It gets one member's rows at a time."""

    def step(self, rows: Rows) -> Rows:
        parts = []
        for start in range(0, len(rows.infos), self.wrapper.num_envs):
            mine = slice(start, start + self.wrapper.num_envs)
            observations = each(lambda its, mine=mine: its[mine], rows.observations)
            parts.append(self._step_wait(Rows(observations, rows.rewards[mine], rows.dones[mine], rows.infos[mine])))
        return Rows(
            each(lambda *its: np.concatenate(its), *(part.observations for part in parts)),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate([part.dones for part in parts]),
            [info for part in parts for info in part.infos],
        )


_STAGES: dict[type[VecEnvWrapper], type[Stage] | None] = {
    VecNormalize: Normalize,
    VecFrameStack: FrameStack,
    **dict.fromkeys((VecTransposeImage, VecExtractDictObs), Stage),
    **dict.fromkeys((VecMonitor, VecVideoRecorder), None),  # they record
    VecCheckNan: None,  # siblings' numbers are always checked
}
_OWN_METHODS = ("step", "step_async", "step_wait", "reset")


def register_vec_wrapper(wrapper_class: type[VecEnvWrapper]) -> None:
    """
    Declare that your own VecEnv wrapper keeps no state between steps: its observations, rewards and infos depend only on
    those of the VecEnv inside. The wrapper's ``step_wait`` is then applied to siblings, too.

    Example::

        class ShapedReward(VecEnvWrapper):
            def reset(self):
                return self.venv.reset()

            def step_wait(self):
                observations, rewards, dones, infos = self.venv.step_wait()
                return observations, rewards + 1.0, dones, infos

        register_vec_wrapper(ShapedReward)

    :param wrapper_class: The class; included are subclasses that override neither ``step_wait`` nor ``reset``
    :raises TypeError: if ``wrapper_class`` is no subclass of VecEnvWrapper
    """
    if not (isinstance(wrapper_class, type) and issubclass(wrapper_class, VecEnvWrapper)):
        raise TypeError(f"wrapper_class must be a subclass of VecEnvWrapper, got {wrapper_class!r}.")
    _STAGES[wrapper_class] = Stateless


def stages_of(env: VecEnv, n_siblings: int) -> list[Stage]:
    """The stages for a VecEnv's wrappers, innermost first."""
    stages: list[Stage] = []
    while isinstance(env, VecEnvWrapper):
        kind = type(env)
        base = next((base for base in kind.__mro__ if base in _STAGES), None)
        if base is None or any(getattr(kind, name) is not getattr(base, name) for name in _OWN_METHODS):
            known = ", ".join(sorted(kind.__name__ for kind in _STAGES))
            raise ValueError(
                f"Received an env wrapped in {kind.__name__}; the package cannot apply this wrapper to siblings, because it "
                f"does not know it. Known VecEnv wrappers: {known}. If it keeps no state between steps, declare this: "
                f"register_vec_wrapper({kind.__name__}), from sb3_hybrid_grpo.branching. Else write it as a "
                "gymnasium.Wrapper around each env, or use n_samples=1 (plain PPO)."
            )
        stage = _STAGES[base]
        stages += [] if stage is None else [stage(env, n_siblings)]
        env = env.venv
    return stages[::-1]


def row_of(observations: Observations, row: int) -> Any:
    """Take one observation out of a batch."""
    return each(lambda values: values[row].copy(), observations)


def check_numbers(observations: Observations, rewards: np.ndarray, n_envs: int, step: int) -> None:
    """Raise an error if siblings' numbers are NaN: VecCheckNan does not see siblings, and the loss would become NaN."""
    named = {f"observation {key!r}": its for key, its in observations.items()} if isinstance(observations, dict) else {}
    for name, values in {"reward": rewards, **(named or {"observation": observations})}.items():
        # the sum is NaN where a value is (or where infinities meet)
        if values.dtype.kind == "f" and np.isnan(np.add.reduce(values, axis=None)) and np.isnan(values).any():
            row = int(np.flatnonzero(np.isnan(values.reshape(len(values), -1)).any(axis=1))[0])
            raise BranchingError(
                f"The {name} of member {row // n_envs + 1} (a sibling) of env {row % n_envs} is NaN at step {step} of the "
                f"training: {values[row]}. Check the env's step() for the actions it was given; VecCheckNan finds a NaN of "
                "member 0."
            )


def each(function: Callable[..., Any], *batches: Observations) -> Observations:
    """Apply a function to arrays, or to each key of dicts of arrays."""
    if isinstance(batches[0], dict):
        return {key: function(*(batch[key] for batch in batches)) for key in batches[0]}
    return function(*batches)
