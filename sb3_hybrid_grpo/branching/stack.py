"""What the VecEnv wrappers do to an observation, done to the siblings' without a trace in the wrappers."""

import copy
from typing import Any

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

from sb3_hybrid_grpo.branching.fanout import Observations


class Stage:
    """
    One VecEnv wrapper as siblings see it. By itself it changes nothing: recorders and checks.

    :param wrapper: The wrapper
    :param n_siblings: M, the number of siblings of each of the E envs
    """

    def __init__(self, wrapper: Any, n_siblings: int) -> None:
        self.wrapper = wrapper

    def fork(self, forks: np.ndarray) -> None:
        """Give these siblings, ``(M, E)``, the state of member 0."""

    def step(self, observations: Observations) -> Observations:
        """Transform the observations that all M·E siblings reached."""
        return observations

    def preview(self, observations: Observations) -> Observations:
        """What :meth:`step` would return now; nothing is kept."""
        return self.step(observations)

    def rewards(self, rewards: np.ndarray) -> np.ndarray:
        """Transform rewards."""
        return rewards


class Normalize(Stage):
    """VecNormalize, with the statistics in force now."""

    def step(self, observations: Observations) -> Observations:
        return self.wrapper.normalize_obs(observations)

    def rewards(self, rewards: np.ndarray) -> np.ndarray:
        normalized: np.ndarray = self.wrapper.normalize_reward(rewards)
        return normalized


class Transpose(Stage):
    """VecTransposeImage."""

    def step(self, observations: Observations) -> Observations:
        return self.wrapper.transpose_observations(observations)


class ExtractKey(Stage):
    """VecExtractDictObs."""

    def step(self, observations: Observations) -> Observations:
        return observations[self.wrapper.key]


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

    def step(self, observations: Observations) -> Observations:
        for key, stack in self.stacks.items():
            frames = observations if key is None else observations[key]
            axis = stack.stack_dimension
            kept = np.take(stack.stacked_obs, range(frames.shape[axis], stack.stacked_obs.shape[axis]), axis=axis)
            stack.stacked_obs = np.concatenate([kept, frames], axis=axis)
        read = {key: stack.stacked_obs.copy() for key, stack in self.stacks.items()}
        return read[None] if None in read else read

    def preview(self, observations: Observations) -> Observations:
        before = {key: stack.stacked_obs for key, stack in self.stacks.items()}
        seen = self.step(observations)
        for key, frames in before.items():
            self.stacks[key].stacked_obs = frames
        return seen


_STAGES: dict[type[VecEnvWrapper], type[Stage]] = {
    VecNormalize: Normalize,
    VecFrameStack: FrameStack,
    VecTransposeImage: Transpose,
    VecExtractDictObs: ExtractKey,
    VecMonitor: Stage,
    VecVideoRecorder: Stage,
    VecCheckNan: Stage,  # what a sibling gives is always checked
}


def stages_of(env: VecEnv, n_siblings: int) -> list[Stage]:
    """
    Find what the siblings' observations and rewards go through.

    :param env: The user's VecEnv
    :param n_siblings: Number of siblings of each env
    :return: The stages, innermost first
    :raises ValueError: if what a VecEnv wrapper does is not known
    """
    stages: list[Stage] = []
    while isinstance(env, VecEnvWrapper):
        # not by isinstance: a subclass may do something else to an observation
        if type(env) not in _STAGES:
            known = ", ".join(sorted(kind.__name__ for kind in _STAGES))
            raise ValueError(
                f"Received an env wrapped in {type(env).__name__}; what it does to the observations and rewards of siblings "
                f"is not known. Known VecEnv wrappers: {known}. Write it as a gymnasium.Wrapper around each env, "
                "or use n_samples=1 (plain PPO)."
            )
        stages.append(_STAGES[type(env)](env, n_siblings))
        env = env.venv
    return stages[::-1]
