"""The mixin that adds groups to PPO, MaskablePPO and RecurrentPPO."""

import functools
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo import validation
from sb3_hybrid_grpo.auto_grouping import AutoGrouping
from sb3_hybrid_grpo.branching import BranchHorizon, Candidates, Groups, GroupStep, uninterrupted
from sb3_hybrid_grpo.buffers import AdvantageEstimator, Estimation, HybridDictRolloutBuffer, HybridRolloutBuffer
from sb3_hybrid_grpo.errors import DIVERGED, BranchingError
from sb3_hybrid_grpo.graph_replay import GraphReplay, graph_key
from sb3_hybrid_grpo.member_calls import call_for_each_member, observations_reached, rows_of_members, tensor_of, within_space
from sb3_hybrid_grpo.model_files import ModelFiles
from sb3_hybrid_grpo.notices import notice
from sb3_hybrid_grpo.policy_scores import measured_variances
from sb3_hybrid_grpo.selection import ActionSelection, choose_by_value
from sb3_hybrid_grpo.signatures import arguments_of, refuse_unknown
from sb3_hybrid_grpo.transforms import Part, RewardTransform, Transform
from sb3_hybrid_grpo.update import FastUpdate

Acted = tuple[th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]
SelfGroupRollouts = TypeVar("SelfGroupRollouts", bound="GroupRollouts")


class GroupRollouts(FastUpdate, ModelFiles):
    """
    Mixin that adds groups to PPO, MaskablePPO or RecurrentPPO (below: PPO), as in ``class HybridGRPO(GroupRollouts, PPO)``.

    :param args, kwargs: PPO's arguments, in PPO's order or by name
    :param n_samples: N, the number of members of a group. With 1, the training is bit for bit PPO's
    :param branch_horizon: When siblings fork from member 0: an int K, every K steps and when member 0's episode ends;
        "episode", only when member 0's episode ends; "auto", K = 256 while groups pay, and no siblings while they do not
    :param advantage_estimator: "hybrid" (GAE minus a share β of the other members' mean advantage), "paper" (the paper's mean
        over branches), "paper_per_sample" (without that mean) or "grpo" (rewards standardised within the group, no critic)
    :param group_baseline: The share β of "hybrid", from 0 (PPO's baseline) to 1; "auto": estimated from every rollout
    :param reward_transform: f(R), applied to the rewards before the estimator: None, "tanh", "clip", "symlog", "normalize",
        "scale", "group", a function from an array of rewards to one of the same shape, or a list of these
    :param action_selection: Which of the N actions of a state is executed: "on_policy", the first; "greedy", the one with the
        largest q = f(R) + γV(s'); "softmax", drawn by the softmax of q / temperature. The last two need K = 1, and one more
        simulator step in each state
    :param selection_temperature: The temperature of "softmax", in units of q
    :param adapt_rollouts: Whether grouped rollouts get shorter if ρ is low; a number: the fewest executed steps, 128 if True
    :param branching_check: Whether to check siblings of the env, before and while it trains; the check's steps do not count
    :raises ValueError: if an argument has a value that is not allowed (TypeError: if an argument is unknown)
    :raises BranchingError: if the env cannot be branched
    """

    _buffer_classes: ClassVar[Any] = (HybridRolloutBuffer, HybridDictRolloutBuffer)  # None: users cannot replace the buffer
    _sampling: Any = None
    _steps_said = False
    batch_size: Any
    policy: Any
    rollout_buffer: Any

    def __init__(
        self,
        *args: Any,
        n_samples: int = 4,
        branch_horizon: BranchHorizon = "auto",
        advantage_estimator: AdvantageEstimator = "hybrid",
        group_baseline: float | Literal["auto"] = "auto",
        reward_transform: RewardTransform | None = None,
        action_selection: ActionSelection = "on_policy",
        selection_temperature: float = 1.0,
        adapt_rollouts: bool | int = True,
        branching_check: bool = True,
        **kwargs: Any,
    ) -> None:
        validation.check_no_longer(kwargs)
        refuse_unknown(kwargs, type(self).__name__, arguments_of(self._without_groups), arguments_of(GroupRollouts))
        self.n_samples, self.branch_horizon, self.branching_check = n_samples, branch_horizon, branching_check
        self.advantage_estimator, self.group_baseline = advantage_estimator, group_baseline
        self.reward_transform, self.adapt_rollouts = reward_transform, adapt_rollouts
        self.action_selection, self.selection_temperature = action_selection, selection_temperature
        self.num_executed_steps, self.auto_grouping = 0, AutoGrouping()
        self.reward_statistics: dict[str, Part] = {}
        self._groups: Groups | None = None
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        self._read_arguments()
        given = self.rollout_buffer_class
        if self._buffer_classes is not None:
            automatic = self._buffer_classes[isinstance(self.observation_space, spaces.Dict)]
            self.rollout_buffer_class = validation.checked_buffer_class(given or automatic, automatic)
        super()._setup_model()
        self.rollout_buffer_class = given  # None is saved as None, so that PPO.load takes its own class
        self._groups = None if self.env is None else self._make_groups(self.env)

    def _read_arguments(self) -> None:
        """Check the arguments, which a user may change between two calls of ``learn``, and read them."""
        validation.check_arguments(self)
        self._transform = Transform(self.reward_transform, self.n_samples, self.reward_statistics)
        self.reward_statistics = self._transform.statistics
        self._shape_of_groups = (self.n_samples, self.branch_horizon, self.action_selection)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        before, groups = self.env, self._groups
        super().set_env(env, force_reset)
        self._groups = None  # if the new env cannot have siblings, the siblings of the old env must not be stepped
        if groups is not None:
            groups.drop_siblings()
        self._groups = self._make_groups(self.env)
        if before is not None and self.env is not before:
            self.auto_grouping = AutoGrouping()  # another env may be without noise; a loaded model keeps its measurements

    def _make_groups(self, env: Any) -> Groups:
        self._groups_of = self._shape_of_groups
        if self.action_selection != "on_policy":
            return Candidates(env, self.n_samples, functools.partial(choose_by_value, self))
        try:
            return Groups(env, self.n_samples, self.branch_horizon)
        except (ValueError, BranchingError) as error:
            return self._without_siblings(env, error)

    def _without_siblings(self, env: Any, error: Exception) -> Groups:
        """Train as PPO if the horizon is "auto" and the env cannot have siblings; otherwise raise the error."""
        if self.branch_horizon != "auto":
            raise error
        notice(f"{type(self).__name__} trains without siblings, as {self._without_groups.__name__} does: {error}")
        return Groups(env, 1, "auto")

    def learn(
        self: SelfGroupRollouts,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> SelfGroupRollouts:
        """
        :param total_timesteps: Number of steps of the simulator, over all envs and members
        :param callback: Callback(s) called at every step of every member
        :param log_interval: Number of rollouts between two logs (None: no logs)
        :param tb_log_name: Name of the run for TensorBoard; None: the name of the class
        :param args, kwargs: Further arguments of PPO's ``learn``: ``reset_num_timesteps``, ``progress_bar``, ...
        :return: The trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name or type(self).__name__, *args, **kwargs)

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        th.set_grad_enabled(True)  # an interrupt may have left it off
        self._read_arguments()
        env_is_reset = self._the_groups().lost_member_0 or reset_num_timesteps or self._last_obs is None
        if self._groups_of != self._shape_of_groups:
            self._the_groups().drop_siblings()
            self._groups = self._make_groups(self.env)
        if self.auto_grouping.shape != self._groups_of[:2]:
            self.auto_grouping = AutoGrouping(shape=self._groups_of[:2])
        self._last_obs = None if env_is_reset else self._last_obs
        with uninterrupted(self.env):
            total_and_callback = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        self.num_executed_steps = 0 if reset_num_timesteps else self.num_executed_steps
        self._first_timestep = self.num_timesteps
        try:
            self._the_groups().start(env_is_reset, self.branching_check)
            if self.branch_horizon == "auto" and self.auto_grouping.noise_seen is None:
                self.auto_grouping.see_noise(self._the_groups().saw_noise())
        except BranchingError as error:
            self._groups = self._without_siblings(self.env, error)
        return total_and_callback

    def _the_groups(self) -> Groups:
        if self._groups is None:
            raise ValueError("This model has no env to train in. Give it one: model.set_env(env).")
        return self._groups

    def _members_of_next(self) -> int:
        """Number of members in the next rollout; 1 if it has no siblings."""
        groups, auto = self._the_groups(), self.auto_grouping
        if self._groups_of[1] != "auto" or groups.n_samples == 1:
            return groups.n_samples
        if reasons := groups.fork_reasons():
            groups.drop_siblings()
            costly = BranchingError(f"{reasons} To train with forks all the same, use branch_horizon=256.")
            self._groups = self._without_siblings(self.env, costly)
            return 1
        return groups.n_samples if auto.next_is_grouped(self.n_steps * self.n_envs) else 1

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """
        Collect steps of every member of every group, and estimate advantages. Callbacks are called as often as by PPO for as
        many simulator steps: at each step once for each member, member 0 first, with that member's rows.

        :param env: The training environment
        :param callback: Callback that will be called at each step of each member, and when the rollout begins and ends
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Number of samples of each env, over all members of its group
        :return: False if the callback ended the rollout prematurely
        """
        n_members, groups = self._members_of_next(), self._the_groups()
        n_executed = self._steps_to_execute(n_rollout_steps, env.num_envs, n_members)
        if (message := validation.steps_notice(n_rollout_steps, n_members)) and not self._steps_said:
            self._steps_said = True
            notice(message)
        self.policy.set_training_mode(False)
        rollout_buffer.begin(n_executed, env.num_envs, n_members)
        rollout_buffer.estimation = Estimation(self.advantage_estimator, self.group_baseline, self._transform)
        key = graph_key(self.policy, self.observation_space)
        if getattr(self._sampling, "key", None) != key:
            self._sampling = None if key is None else GraphReplay(self.policy, key)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs * n_members)
        callback.on_rollout_start()
        shown = dict(self=self, env=env, callback=callback, rollout_buffer=rollout_buffer, n_rollout_steps=n_rollout_steps)
        for n_steps in range(n_executed):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs * n_members)
            obs, starts = self._acts_on(groups, n_members)
            obs_tensor = obs_as_tensor(obs, self.device)
            with th.no_grad():
                actions, values, log_probs, stored = self._act(obs_tensor, groups, n_members)
            sampled = actions.cpu().numpy()
            clipped = within_space(self.policy, self.action_space, sampled)
            step = groups.step(clipped.reshape(n_members, env.num_envs, *clipped.shape[1:]))
            if step.order_NE is not None:  # the executed action comes first
                order = (step.order_NE * env.num_envs + np.arange(env.num_envs)).reshape(-1)
                sampled, clipped, log_probs = sampled[order], clipped[order], log_probs[order]
                self.num_timesteps += env.num_envs  # the executed action was tried before, in a branch
            shown |= {"n_steps": n_steps, "obs_tensor": obs_tensor, "actions": sampled, "clipped_actions": clipped}
            shown |= {"values": values, "log_probs": log_probs}
            self.num_executed_steps += env.num_envs
            go_on = call_for_each_member(self, callback, shown, step)
            self._last_obs, self._last_episode_starts = rows_of_members(step.new_obs, n_members)[0], step.dones_NE[0]
            if not go_on:
                return False
            self._update_info_buffer(step.infos[0], step.dones_NE[0])
            rollout_buffer.add(obs, sampled, np.concatenate(step.rewards), starts, values, log_probs, **stored)
            self._store_ends(rollout_buffer, step)

        obs, _ = self._acts_on(groups, n_members)
        with th.no_grad():
            values = self._last_values(obs_as_tensor(obs, self.device), groups, n_members)
        dones = step.cut_NE.reshape(-1)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        self._learn_grouping(n_members)
        callback.update_locals({**shown, "n_steps": n_executed, "new_obs": obs, "dones": dones, "values": values})
        callback.on_rollout_end()
        return True

    def _steps_to_execute(self, n_steps: int, n_envs: int, n_members: int) -> int:
        """Steps of each member in the next rollout."""
        longest = validation.executed_steps(n_steps, n_members)
        if n_members == 1:
            done = (self.num_timesteps - self._first_timestep) // n_envs % n_steps
            return validation.steps_to_complete(done, n_steps, (self.batch_size or 0) / n_envs)
        two_minibatches = -(-2 * (self.batch_size or 0) // (n_envs * n_members))
        return self.auto_grouping.length(longest, two_minibatches, self.adapt_rollouts)

    def _acts_on(self, groups: Groups, n_members: int) -> tuple[Any, np.ndarray]:
        """The observations that members act on next, and whether an episode or (for siblings) a fork begins there."""
        obs, starts = self._last_obs, np.asarray(self._last_episode_starts)
        if n_members == 1:
            return obs, starts
        return groups.observations(obs), np.concatenate([starts, groups.starts_ME[: n_members - 1].reshape(-1)])

    def _act(self, obs: Any, groups: Groups, n_members: int) -> Acted:
        """Sample the actions of all members: actions, values, log-probabilities, and further arrays for the buffer."""
        # the first step replaces tensors that the update has left in the policy; a callback may have replaced the policy
        first = self.rollout_buffer.pos == 0 or self._sampling is None or self._sampling.key[0] is not self.policy
        if first or not isinstance(obs, th.Tensor):
            return *self.policy(obs), {}
        actions, values, log_probs = self._sampling(obs)
        if th.isnan(log_probs).any():
            raise ValueError(DIVERGED)
        return actions, values, log_probs, {}

    def _store_ends(self, buffer: Any, step: GroupStep) -> None:
        """Store which members are terminated or cut, and V of the next state of those that are cut but not terminated."""
        reached_NE = step.cut_NE & ~step.terminated_NE
        columns: Any = np.flatnonzero(reached_NE)
        values = np.empty(0, dtype=np.float32)
        if len(columns):
            rows = observations_reached(step, reached_NE)
            # without siblings one by one, as PPO does: torch rounds a row of a batch differently
            size = 1 if len(step.rewards) == 1 else len(rows)
            batches = [slice(first, first + size) for first in range(0, len(rows), size)]
            with th.no_grad():
                values = np.concatenate([self._values_reached(rows[batch], columns[batch]) for batch in batches])
        buffer.add_ends(step.terminated_NE.reshape(-1), step.cut_NE.reshape(-1), values)

    def _values_reached(self, rows: list[Any], columns: np.ndarray) -> Any:
        """V of the next observations of some members; ``columns`` are the members' columns of the buffer."""
        return self.policy.predict_values(tensor_of(rows, self.device)).cpu().numpy().flatten()

    def _last_values(self, obs: Any, groups: Groups, n_members: int) -> Any:
        """V of the states in which members act next."""
        return self.policy.predict_values(obs)

    def _learn_grouping(self, n_members: int) -> None:
        """Measure the variance of the finished rollout's gradient, on which the kind and length of the next ones depend."""
        measures = n_members > 1 and self.advantage_estimator == "hybrid"
        rollout = (self.policy, self.rollout_buffer, self._distribution_of, self.auto_grouping.looks_for_noise)
        self._variances = measured_variances(*rollout) if measures else None
        self.auto_grouping.observe(n_members, self._variances)

    def _distribution_of(self, obs: Any, steps: slice) -> Any:
        """The policy's distribution for the buffer's observations of some steps."""
        return self.policy.get_distribution(obs)

    def train(self) -> None:
        """Update the policy with the rollout, as PPO does."""
        super().train()
        buffer, auto, record = self.rollout_buffer, self.auto_grouping, self.logger.record
        if self._groups_of[1] == "auto" and self._groups_of[0] > 1:
            record("train/grouped", int(buffer.n_samples > 1))
        if self.advantage_estimator == "grpo":  # it has no critic
            record("train/explained_variance", np.nan)
        if self.advantage_estimator == "hybrid" and buffer.n_samples > 1:
            record("train/group_beta", buffer.baseline.beta)
            record("train/group_variance_removed", buffer.baseline.variance_removed)
        if self._variances is not None and auto.ratio is not None:
            record("train/gradient_variance_ratio", auto.ratio)

    def dump_logs(self, iteration: int = 0) -> None:
        self.logger.record("time/executed_steps", self.num_executed_steps)
        self.logger.record_mean("rollout/worker_restarts", getattr(self.env, "worker_restarts", None))  # RayVecEnv has it
        super().dump_logs(iteration)
