"""What trains in groups, whatever it then learns from them: rollouts, their bookkeeping, saving."""

import copy
import os
from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching import BranchHorizon, Candidates, Groups, GroupStep
from sb3_hybrid_grpo.buffers import AdvantageEstimator, HybridDictRolloutBuffer, HybridRolloutBuffer
from sb3_hybrid_grpo.grouping import AutoGrouping
from sb3_hybrid_grpo.recording import Recorded, can_be_recorded
from sb3_hybrid_grpo.sampling import recorded_sampling, sample_actions
from sb3_hybrid_grpo.selection import ActionSelection, select_actions
from sb3_hybrid_grpo.transforms import Part, RewardTransform, apply_transform, resolve_transform

BufferClasses = tuple[type[HybridRolloutBuffer], type[HybridDictRolloutBuffer]]
"""For arrays, and for dicts."""


class GroupOnPolicyAlgorithm(OnPolicyAlgorithm):
    """
    SB3's :class:`OnPolicyAlgorithm` with a group of members in place of every env. A subclass has the arguments below as
    attributes, calls :meth:`_setup_groups` from ``_setup_model``, and trains on ``rollout_buffer``.
    """

    _shares_states: ClassVar[bool] = True
    """Whether members that are always in one state have one row of observations for all of them."""
    _buffer_classes: ClassVar[BufferClasses] = (HybridRolloutBuffer, HybridDictRolloutBuffer)
    n_samples: int
    branch_horizon: BranchHorizon
    advantage_estimator: AdvantageEstimator
    group_baseline: float | Literal["auto"]
    reward_transform: RewardTransform | None
    action_selection: ActionSelection
    selection_temperature: float
    sampling_temperature: float
    branching_check: bool
    _recorded: tuple[Any, Recorded | None] = ((), None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_simulator_steps = 0
        self.last_seed: int | None = None
        """That of the last :meth:`set_random_seed`; siblings have theirs from it."""
        self._groups: Groups | None = None
        self._sibling_ends = 0
        self.auto_grouping = AutoGrouping()
        self.reward_statistics: dict[str, Part] = {}

    def _setup_groups(self) -> None:
        """Make the groups, and a buffer for what they do."""
        is_dict = isinstance(self.observation_space, spaces.Dict)
        automatic = self._buffer_classes[is_dict]
        buffer_class = automatic if self.rollout_buffer_class is None else self.rollout_buffer_class
        if not issubclass(buffer_class, automatic):
            raise ValueError(
                f"Received rollout_buffer_class={buffer_class.__name__}, which has no place for the members of a group. "
                f"Use None, or a subclass of {automatic.__module__}.{automatic.__name__}."
            )
        transform = resolve_transform(self.reward_transform, self.n_samples, self.reward_statistics)
        self.reward_statistics = {} if transform is None else transform.statistics
        if self.env is not None:
            self._groups = self._make_groups(self.env)
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            n_envs=self.n_envs,
            n_samples=self.n_samples,
            shared_states=self.n_samples == 1 or (self.branch_horizon == 1 and self._shares_states),
            forks=self.branch_horizon != "free",
            advantage_estimator=self.advantage_estimator,
            group_baseline=self.group_baseline,
            reward_transform=transform,
            **self._buffer_kwargs(),
            **self.rollout_buffer_kwargs,
        )

    def _buffer_kwargs(self) -> dict[str, Any]:
        """Further arguments of the rollout buffer."""
        return {}

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        self.last_seed = self.last_seed if seed is None else seed

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        before = self.env
        super().set_env(env, force_reset)
        self._groups = None  # where no siblings can live in the new env, the old one's are not stepped in it
        self._groups = self._make_groups(cast(VecEnv, self.env))
        if before is not None and self.env is not before:
            self.auto_grouping = AutoGrouping()  # another env may be without noise; a model that had none goes on in its own

    def _make_groups(self, env: VecEnv) -> Groups:
        if self.action_selection == "on_policy":
            return Groups(env, self.n_samples, self.branch_horizon, self._shares_states)
        return Candidates(env, self.n_samples, self._choose)

    def _choose(self, observations: Any, rewards_NE: np.ndarray, terminated_NE: np.ndarray) -> np.ndarray:
        """Which of N actions to execute, by what each led to."""
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(observations, self.device)).cpu().numpy()
        # a copy, because an object of the user's may change when it is called
        transform = copy.deepcopy(cast(HybridRolloutBuffer, self.rollout_buffer).reward_transform)
        rewards_TEN = rewards_NE.T[None]
        starts_TEN = np.zeros(rewards_TEN.shape, dtype=bool)
        rewards_NE = apply_transform(transform, rewards_TEN, starts_TEN, self.gamma, forks=True, learn=False)[0].T
        scores_NE = rewards_NE + self.gamma * values.reshape(rewards_NE.shape) * ~terminated_NE
        uniform_E = th.rand(rewards_NE.shape[1]).numpy() if self.action_selection == "softmax" else np.empty(0)
        return select_actions(scores_NE, self.action_selection, self.selection_temperature, uniform_E)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        groups = self._the_groups()
        if groups.lost_member_0:
            self._last_obs = None
        env_is_reset = reset_num_timesteps or self._last_obs is None
        total_and_callback = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if reset_num_timesteps:
            self.num_simulator_steps = 0
        groups.start(env_is_reset, self.last_seed, self.branching_check)
        if env_is_reset:
            self._last_obs = groups.first_observations(self._last_obs)
        return total_and_callback

    def _the_groups(self) -> Groups:
        if self._groups is None:
            raise ValueError("This model has no env to train in. Give it one: model.set_env(env).")
        return self._groups

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Let every group take n_rollout_steps steps, and estimate advantages. Callbacks see member 0, as PPO's see the env.

        :param env: The training environment
        :param callback: Callback that will be called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Number of steps to execute in each environment
        :return: False if the callback ended the rollout prematurely
        """
        groups, buffer, n_envs = self._the_groups(), cast(HybridRolloutBuffer, rollout_buffer), env.num_envs
        self.policy.set_training_mode(False)
        n_steps, self._sibling_ends = 0, 0
        buffer.reset()
        self._record_sampling(buffer)
        if self._decides_whether_to_fork:
            buffer.forks = self._regroup()
        if self.use_sde:
            self.policy.reset_noise(n_envs * self.n_samples)
        callback.on_rollout_start()

        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(n_envs * self.n_samples)
            group_obs = groups.observations(self._last_obs)
            starts = np.concatenate([self._last_episode_starts, groups.starts_ME[: self.n_samples - 1].reshape(-1)])
            with th.no_grad():
                tensor = obs_as_tensor(group_obs, self.device)
                all_actions, all_values, all_log_probs = self._act(tensor, groups, buffer)
            group_actions = all_actions.cpu().numpy()
            group_clipped = self._within_space(group_actions).reshape(self.n_samples, n_envs, *group_actions.shape[1:])
            step = groups.step(group_clipped)
            if step.order_NE is not None:  # the executed action comes first
                order = (step.order_NE * n_envs + np.arange(n_envs)).reshape(-1)
                group_actions, all_log_probs = group_actions[order], all_log_probs[order]
                group_clipped = group_clipped[step.order_NE, np.arange(n_envs)]

            # member 0's part, under the names that callbacks know from PPO
            obs_tensor = tensor[:n_envs] if isinstance(tensor, th.Tensor) else {k: v[:n_envs] for k, v in tensor.items()}
            actions, clipped_actions = group_actions[:n_envs], group_clipped[0]
            values, log_probs = all_values[:n_envs], all_log_probs[:n_envs]
            new_obs, rewards, dones, infos = step.observations, step.rewards, step.dones, step.infos
            self.num_timesteps += n_envs
            self.num_simulator_steps += n_envs * self._simulator_steps_a_state
            callback.update_locals(locals())
            go_on = callback.on_step()
            self._last_obs, self._last_episode_starts = new_obs, dones
            if not go_on:
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            self._sibling_ends += step.sibling_ends
            buffer.add_ends(step.terminated_NE, step.cut_NE, step.reached, self._memory_of(step))
            buffer.add(group_obs, group_actions, step.rewards_NE.reshape(-1), starts, all_values, all_log_probs)
            self._value_reached(buffer, rest=n_steps == n_rollout_steps)

        with th.no_grad():
            last_values = self._last_values(obs_as_tensor(groups.observations(new_obs), self.device), groups)
        buffer.compute_returns_and_advantage(last_values, step.cut_NE.reshape(-1))
        if self._decides_whether_to_fork:
            self.auto_grouping.observe(buffer.baseline.variance_removed if buffer.forks else None)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _value_reached(self, buffer: HybridRolloutBuffer, rest: bool) -> None:
        """Compute V of states reached: once there are many, for images would fill the memory, or of the rest."""
        for places, reached, memories in buffer.pending(rest):
            with th.no_grad():
                buffer.set_next_values(places, self._values(obs_as_tensor(reached, self.device), memories))

    @property
    def _decides_whether_to_fork(self) -> bool:
        return self.branch_horizon == "auto" and self.n_samples > 1

    def _regroup(self) -> bool:
        """Decide whether siblings fork in the rollout that begins, and tell them."""
        auto, groups = self.auto_grouping, self._the_groups()
        auto.noise_seen = auto.noise_seen or groups.saw_noise()
        # siblings let go at another time see another future, at equal seeds the same in every run
        entropy = None if self.last_seed is None else [self.last_seed, auto.times_let_go]
        seed = None if entropy is None else int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1
        auto.times_let_go += groups.regroup(free=not auto.forks, seed=seed)
        return auto.forks

    @property
    def _simulator_steps_a_state(self) -> int:
        """One a sample; where the executed action is chosen from those tried, it is stepped once more."""
        return self.n_samples + (self.action_selection != "on_policy")

    def _act(self, obs: Any, groups: Groups, buffer: HybridRolloutBuffer) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Draw the actions of all members. What else the loss will want to know of them is stored.

        :return: Actions and their log-probabilities, one a member, and values, one a state
        """
        return self._sampled(buffer, obs, None)

    def _sampled(
        self, buffer: HybridRolloutBuffer, obs: Any, masks: np.ndarray | None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        n_samples, temperature = buffer.samples_per_state, self.sampling_temperature
        # not in the first step: what the policy keeps of the update, its gradient's graph included, is not to stay
        is_still = self._recorded[0][:3] == (self.policy, n_samples, temperature)
        recorded = self._recorded[1] if masks is None and buffer.pos > 0 and is_still else None
        actions, values, log_probs, weights = sample_actions(self.policy, obs, n_samples, temperature, masks, recorded)
        if weights is not None:
            buffer.add_weights(weights)
        return actions, values, log_probs

    def _record_sampling(self, buffer: HybridRolloutBuffer) -> None:
        """Begin to record how actions are drawn, or go on, unless they are now drawn in another way."""
        n_samples, temperature = buffer.samples_per_state, self.sampling_temperature
        known = can_be_recorded(self.policy, self.observation_space)
        parameters = (id(one) for one in (self, *self.policy.parameters()))
        of = (self.policy, n_samples, temperature, known, *self.policy.modules(), *parameters)
        if self._recorded[0] != of:
            self._recorded = (of, recorded_sampling(self.policy, n_samples, temperature) if known else None)

    def _memory_of(self, step: GroupStep) -> Any:
        """What the values of the states reached in a step depend on besides."""
        return None

    def _values(self, obs: Any, memories: list[Any]) -> th.Tensor:
        """Values of states reached."""
        return self.policy.predict_values(obs)

    def _last_values(self, obs: Any, groups: Groups) -> th.Tensor:
        """Values of the states that members act on next."""
        return self.policy.predict_values(obs)

    def _within_space(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the policy as the env wants them: unscaled if they are squashed, else clipped."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        # np.clip is four calls in Python around its one in C
        clipped: np.ndarray = np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)
        return clipped

    def dump_logs(self, iteration: int = 0) -> None:
        self.logger.record("time/simulator_steps", self.num_simulator_steps)
        if self.n_samples > 1:
            self.logger.record("rollout/sibling_resets", self._sibling_ends)
        super().dump_logs(iteration)

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. A file of that name is replaced only when the new one is complete.

        :param path: Path to the file, or an open file
        :param exclude: Names of attributes to leave out in addition to the default ones
        :param include: Names of attributes to save although they are left out by default
        """
        if isinstance(path, BufferedIOBase):
            super().save(path, exclude, include)
            return
        path = Path(path)
        path = (path if path.suffix else path.with_name(f"{path.name}.zip")).resolve()  # what a link leads to
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            super().save(unfinished, exclude, include)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_groups", "_recorded", "last_seed"]
