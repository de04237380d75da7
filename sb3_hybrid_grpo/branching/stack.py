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

from sb3_hybrid_grpo.branching.batches import each
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

    def restart(self, indices: np.ndarray, observations: Observations) -> Observations:
        """Transform the first observations of the siblings that reset by themselves (places among the M·E)."""
        return self.step(observations)

    def first(self, observations: Observations) -> Observations:
        """Transform member 0's first observations once more, which what is below now gives otherwise."""
        return self.step(observations)

    def rewards(self, rewards: np.ndarray) -> np.ndarray:
        """Transform rewards."""
        return rewards

    def state(self) -> Any:
        """What siblings are, to be put aside."""

    def set_state(self, state: Any) -> None:
        """Siblings go on from there."""


class Normalize(Stage):
    """VecNormalize, with the statistics in force now."""

    def __init__(self, wrapper: VecNormalize, n_siblings: int) -> None:
        super().__init__(wrapper, n_siblings)
        self.returns = np.zeros(n_siblings * wrapper.num_envs)

    def learn(self, observations: Observations, rewards: np.ndarray | None, restarted: np.ndarray) -> None:
        """
        Learn from free siblings as VecNormalize learns from its envs.

        :param observations: What they act on next, not normalised
        :param rewards: Their rewards, likewise; None at a reset
        :param restarted: Those whose episode ended, places among the M·E
        """
        if self.wrapper.norm_obs:
            rms = self.wrapper.obs_rms
            for key in rms if isinstance(rms, dict) else [None]:
                (rms if key is None else rms[key]).update(observations if key is None else observations[key])
        if rewards is not None:
            self.returns = self.returns * self.wrapper.gamma + rewards
            self.wrapper.ret_rms.update(self.returns)
        self.returns[restarted] = 0

    def step(self, observations: Observations) -> Observations:
        return self.wrapper.normalize_obs(observations)

    def state(self) -> Any:
        return self.returns.copy()

    def set_state(self, state: Any) -> None:
        self.returns = state

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
        return self._read(slice(None))

    def preview(self, observations: Observations) -> Observations:
        before = self.state()
        seen = self.step(observations)
        self.set_state(before)
        return seen

    def restart(self, indices: np.ndarray, observations: Observations) -> Observations:
        for key, stack in self.stacks.items():
            frames = observations if key is None else observations[key]
            axis = stack.stack_dimension
            blank = np.zeros((len(indices), *stack.stacked_obs.shape[1:]), dtype=stack.stacked_obs.dtype)
            kept = np.take(blank, range(frames.shape[axis], blank.shape[axis]), axis=axis)
            stack.stacked_obs[indices] = np.concatenate([kept, frames], axis=axis)
        return self._read(indices)

    def first(self, observations: Observations) -> Observations:
        return self.wrapper.stacked_obs.reset(observations)

    def state(self) -> Any:
        return {key: stack.stacked_obs.copy() for key, stack in self.stacks.items()}

    def set_state(self, state: Any) -> None:
        for key, frames in state.items():
            self.stacks[key].stacked_obs = frames

    def _read(self, where: Any) -> Observations:
        read = {key: stack.stacked_obs[where].copy() for key, stack in self.stacks.items()}
        return read[None] if None in read else read


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


def learn_from_free(
    stages: list[Stage], observations: Observations, rewards: np.ndarray | None, restarted: np.ndarray, firsts: Observations
) -> None:
    """
    Let VecNormalize, if there is one that trains, learn from free siblings. Before member 0's step, so that all members of a
    step are normalised by statistics that know all of them, as the envs of a VecEnv are. Of two VecNormalize that normalise
    the same thing the outer one learns what the inner one makes of it before it knows member 0's.

    :param stages: What observations go through
    :param observations: What all M·E siblings reached, before any stage
    :param rewards: Their rewards; None at a reset
    :param restarted: Those that reset by themselves, places among the M·E
    :param firsts: Their first observations; None without any
    """
    learning = [place for place, stage in enumerate(stages) if isinstance(stage, Normalize) and stage.wrapper.training]
    involved = stages[: learning[-1] + 1] if learning else []
    before = [stage.state() for stage in involved]
    for place, stage in enumerate(involved):
        if isinstance(stage, Normalize) and place in learning:
            stage.learn(_acted_on(observations, restarted, firsts), rewards, restarted)
            before[place] = stage.state()
        if place == learning[-1]:
            break  # nobody above it learns
        observations, rewards = stage.step(observations), None if rewards is None else stage.rewards(rewards)
        firsts = stage.restart(restarted, firsts) if len(restarted) else firsts
    for stage, state in zip(involved, before, strict=True):
        stage.set_state(state)


def _acted_on(reached: Observations, restarted: np.ndarray, firsts: Observations) -> Observations:
    """The first observations of an episode in place of the last ones of another."""
    if not len(restarted):
        return reached
    observations = each(np.copy, reached)
    each(lambda theirs, new: theirs.__setitem__(restarted, new), observations, firsts)
    return observations


def normalized_again(stages: list[Stage], observations: Observations) -> Observations:
    """
    Normalise member 0's first observations with what siblings' resets have added to the statistics.

    :param stages: What observations go through
    :param observations: Member 0's, as they came out of a reset
    :return: The same, if nothing is normalised
    """
    index = next((index for index, stage in enumerate(stages) if isinstance(stage, Normalize)), None)
    if index is None:
        return observations
    normalize = stages[index].wrapper
    observations = normalize.normalize_obs(normalize.get_original_obs())
    for stage in stages[index + 1 :]:
        observations = stage.first(observations)
    return observations
