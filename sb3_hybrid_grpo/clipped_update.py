"""What updates the policy with a rollout: PPO's clipped loss, over samples that may be of one state and be weighted."""

from collections import defaultdict
from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_hybrid_grpo import losses
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.entropy import EntropyCoefficient
from sb3_hybrid_grpo.group_algorithm import GroupOnPolicyAlgorithm
from sb3_hybrid_grpo.sampling import DIVERGED, evaluate_actions


class ClippedUpdate(GroupOnPolicyAlgorithm):
    """
    :class:`GroupOnPolicyAlgorithm` with PPO's update. A subclass has the arguments below as attributes, schedules made by
    ``_setup_model``.
    """

    batch_size: int
    n_epochs: int
    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    normalize_advantage: bool
    target_kl: float | None
    entropy: EntropyCoefficient

    def train(self) -> None:
        """Update the policy with the rollout."""
        self.policy.set_training_mode(True)
        optimizers = [self.policy.optimizer, self.entropy.optimizer]
        self._update_learning_rate([one for one in optimizers if one is not None])
        progress = self._current_progress_remaining
        clip_range = cast(Schedule, self.clip_range)(progress)
        clip_range_vf = None if self.clip_range_vf is None else cast(Schedule, self.clip_range_vf)(progress)
        logged: dict[str, list[th.Tensor]] = defaultdict(list)
        parameters = list(self.policy.parameters())

        for epoch in range(self.n_epochs):
            go_on = True
            for batch in self.rollout_buffer.get(self.batch_size):
                loss = self._loss(batch, clip_range, clip_range_vf, logged)
                if self.target_kl is not None and logged["approx_kl"][-1].item() > 1.5 * self.target_kl:
                    go_on = False
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {logged['approx_kl'][-1].item():.2f}")
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if not go_on:
                break

        if not th.stack(logged["loss"]).isfinite().all():
            raise ValueError(f"The loss is no finite number any more, and the update has spoilt the policy. {DIVERGED}")
        for name, values in logged.items():
            self.logger.record(f"train/{name}", th.stack(values).mean().item())
        self._log_update(clip_range, clip_range_vf)

    def _loss(
        self, batch: Any, clip_range: float, clip_range_vf: float | None, logged: dict[str, list[th.Tensor]]
    ) -> th.Tensor:
        """The loss of a minibatch. What is logged of it stays a tensor: reading its number would wait for it."""
        actions = batch.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else batch.actions
        values, log_prob, entropy = self._evaluate(batch, actions)
        advantages = losses.normalize_advantages(batch.advantages) if self.normalize_advantage else batch.advantages
        log_ratio = log_prob - batch.old_log_prob
        ratio = th.exp(log_ratio)
        weights = None if self.sampling_temperature == 1 else batch.weights
        policy_loss = losses.clipped_surrogate(advantages, ratio, clip_range, weights)
        entropy_loss = losses.entropy_loss(entropy, log_prob)
        loss = policy_loss + self.entropy.value(self._current_progress_remaining) * entropy_loss
        self.entropy.adapt(-entropy_loss)
        if self.advantage_estimator != "grpo":  # which has no critic
            value_loss = losses.value_loss(values, batch.old_values, batch.returns, clip_range_vf, weights)
            loss = loss + self.vf_coef * value_loss
            logged["value_loss"].append(value_loss.detach())
        with th.no_grad():
            logged["approx_kl"].append(losses.approximate_kl(log_ratio))
            logged["clip_fraction"].append(losses.clip_fraction(ratio, clip_range))
        logged["policy_gradient_loss"].append(policy_loss.detach())
        logged["entropy_loss"].append(entropy_loss.detach())
        logged["loss"].append(loss.detach())
        return loss

    def _evaluate(self, batch: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Values, log-probabilities and entropies of a minibatch's samples."""
        n_samples = cast(HybridRolloutBuffer, self.rollout_buffer).samples_per_state
        return evaluate_actions(self.policy, batch.observations, actions, n_samples)

    def _log_update(self, clip_range: float, clip_range_vf: float | None) -> None:
        buffer = cast(HybridRolloutBuffer, self.rollout_buffer)
        if self.advantage_estimator != "grpo":  # which has no critic
            explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
            self.logger.record("train/explained_variance", explained)
        if self.entropy.changes:
            self.logger.record("train/ent_coef", self.entropy.value(self._current_progress_remaining))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        if self.sampling_temperature != 1:
            self.logger.record("train/sampling_weight_max", float(buffer.weights.max()))
        if self._decides_whether_to_fork:
            self.logger.record("train/noise_seen", int(self.auto_grouping.noise_seen))
            self.logger.record("train/grouped", int(buffer.forks))
        if self.n_samples > 1 and self.advantage_estimator == "hybrid" and buffer.forks:
            self.logger.record("train/group_beta", buffer.baseline.beta)
            self.logger.record("train/group_variance_removed", buffer.baseline.variance_removed)
