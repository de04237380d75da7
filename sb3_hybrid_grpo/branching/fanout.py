"""Steps the siblings of every env of a VecEnv, in its processes where it has some."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from sb3_hybrid_grpo.branching.answers import SiblingFailure, SiblingSteps
from sb3_hybrid_grpo.branching.branchable import layers_above, make_branchable
from sb3_hybrid_grpo.branching.processes import DeadProcessError, Then, base_of, call, when
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.errors import BranchingError

Observations = Any
"""A batch of observations: an array, or a dict of arrays."""


class Fanout:
    """
    Calls a method of every env's :class:`BranchingWrapper` at once, each with arguments of its own.

    :param env: The user's VecEnv
    :raises BranchingError: if an env cannot be branched
    :raises ValueError: if the siblings could not be stepped, or would be drawn on a screen
    """

    def __init__(self, env: VecEnv) -> None:
        if env.render_mode == "human" and "human" in env.get_attr("metadata", 0)[0].get("render_modes", []):
            raise ValueError(
                "Received an env with render_mode='human', which would draw every step of every sibling. "
                "Make the training env without a render_mode, and watch the policy in an env of its own."
            )
        self.base: VecEnv = base_of(env)
        if isinstance(self.base, DummyVecEnv) and _steps_as(self.base, DummyVecEnv):
            self.base.envs = [make_branchable(one) for one in self.base.envs]
            names = ("step_siblings", "mask_siblings", "check_siblings", "saw_noise")
            self._methods = {name: self.base.get_attr(name) for name in names}
        elif isinstance(self.base, SubprocVecEnv) and _steps_as(self.base, SubprocVecEnv):
            if not all(self.base.env_is_wrapped(BranchingWrapper)):
                raise ValueError(
                    "Received a SubprocVecEnv whose envs cannot be branched from outside their processes. "
                    "Make them branchable where they are made:\n"
                    "    make_vec_env(env_id, n_envs=4, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)\n"
                    "or SubprocVecEnv([lambda: make_branchable(gym.make(env_id))] * 4), "
                    "with `from sb3_hybrid_grpo import make_branchable`."
                )
        else:
            raise ValueError(
                f"Received a {type(self.base).__name__}, in which no siblings can be stepped. "
                "Use a DummyVecEnv or a SubprocVecEnv, or n_samples=1 (plain PPO)."
            )
        for above in self._wrappers_above():
            if above:
                raise ValueError(
                    f"Received an env that was made branchable below {', '.join(above)}, which its siblings would escape. "
                    "Call make_branchable last: make_branchable(Wrapper(env)), not Wrapper(make_branchable(env))."
                )
        self.at_step = 0
        """Number of the step that is being taken, for messages."""
        self._keys, self._shapes, dtypes = obs_space_info(self.base.observation_space)
        # a SubprocVecEnv keeps the types in which envs answer, a DummyVecEnv has arrays of its own
        self._casts = not isinstance(self.base, SubprocVecEnv)
        self._dtypes: dict[Any, Any] = dtypes if self._casts else dict.fromkeys(self._keys)

    def _wrappers_above(self) -> list[list[str]]:
        """The wrappers of each env that its siblings would escape."""
        if isinstance(self.base, DummyVecEnv):
            return [layers_above(one) for one in self.base.envs]
        return self.base.env_method("wrappers_above")

    def check(self) -> None:
        """
        Show that siblings are exact, by the next engine where the first one's are not.

        :raises BranchingError: if there is no engine whose siblings are
        """
        self._call("check_siblings", [()] * self.base.num_envs)

    def step(
        self,
        actions: np.ndarray,
        forks: np.ndarray,
        keep: np.ndarray,
        then: Then = None,
    ) -> list[SiblingSteps]:
        """
        Step all siblings.

        :param actions: ``(M, E, ...)``
        :param forks: Which siblings start from their env's current state, ``(M, E)``
        :param keep: In which envs the siblings go on after this step, ``(E,)``
        :param then: Called before processes are waited for: sends them what they are to do next
        :return: What each env's siblings saw
        :raises BranchingError: if a sibling's step fails
        """
        # lists, which cost less than arrays to look at and to send
        forks_of, keeps = forks.T.tolist(), keep.tolist()
        arguments = [(actions[:, e], forks_of[e], keeps[e]) for e in range(self.base.num_envs)]
        return self._call("step_siblings", arguments, then)

    def masks(self, wanted: np.ndarray) -> list[list[np.ndarray]]:
        """
        Ask siblings which actions are valid in their states.

        :param wanted: Which siblings, ``(M, E)``
        :return: The masks of each env's wanted siblings
        :raises BranchingError: if an env fails to say so in a sibling's state
        """
        return self._call("mask_siblings", [(np.flatnonzero(its).tolist(),) for its in wanted.T])

    def saw_noise(self) -> bool:
        """
        Find out whether envs draw random numbers while they step.

        :return: Whether one of them has done so since this was first asked
        """
        return any(self._call("saw_noise", [()] * self.base.num_envs))

    def stacked(self, observations: list[Any]) -> Observations:
        """
        Make a batch of observations, with the dtypes that a VecEnv gives them.

        :param observations: One observation after another
        :return: The batch
        :raises BranchingError: if their shape is not that of the observation space
        """
        batch = {}
        for key in self._keys:
            values = [one if key is None else one[key] for one in observations]
            try:
                rows: np.ndarray | None = np.array(values, dtype=self._dtypes[key])
            except ValueError:  # of several shapes
                rows = None
            if rows is None or rows.shape[1:] != self._shapes[key]:
                what = "observations" if key is None else f"observations {key!r}"
                shapes = " and ".join(map(str, sorted({np.shape(value) for value in values})))
                raise BranchingError(
                    f"Siblings' {what} have the shape {shapes}, where the env's observation_space has {self._shapes[key]}. "
                    "Try it with stable_baselines3.common.env_checker.check_env."
                )
            batch[key] = rows
        return dict_to_obs(self.base.observation_space, batch)

    def rewards(self, rewards: list[float]) -> np.ndarray:
        """
        Make a batch of rewards, with the dtype that a VecEnv gives them.

        :param rewards: One reward after another
        :return: The batch
        """
        return np.array(rewards, dtype=np.float32 if self._casts else None)

    def _call(self, method: str, arguments: list[Any], then: Then = None) -> list[Any]:
        if isinstance(self.base, SubprocVecEnv):
            try:
                answers = call(self.base, method, arguments, then)
            except DeadProcessError as death:
                busy = "stepped" if method == "step_siblings" else "looked after"
                raise BranchingError(
                    f"{when(self.at_step)} the process of env {death.index} died while it {busy} the env's siblings, members "
                    "1 and on (killed, or out of memory?). Make the envs anew and load the last checkpoint."
                ) from death
        else:
            answers = [one(*its) for one, its in zip(self._methods[method], arguments, strict=True)]
        for index, answer in enumerate(answers):
            if isinstance(answer, SiblingFailure):
                who = f"member {answer.member} (a sibling) of env {index}" if answer.member else f"env {index}"
                if answer.refused:
                    raise BranchingError(f"{answer.error} ({when(self.at_step)} {who})")
                what = method.removesuffix("_siblings")
                raise BranchingError(
                    f"{when(self.at_step)} the {what} of {who} failed: {answer.error}. Its traceback:\n{answer.traceback}"
                )
        return answers


def _steps_as(env: VecEnv, kind: type[VecEnv]) -> bool:
    """Whether a VecEnv of a subclass takes a step as its class does."""
    return type(env).step_wait is kind.step_wait and type(env).step_async is kind.step_async
