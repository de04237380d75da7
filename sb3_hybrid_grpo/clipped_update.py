"""What updates the policy with a rollout: PPO's clipped loss, over samples that may be of one state and be weighted."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_hybrid_grpo import losses
from sb3_hybrid_grpo.adam import steps_of
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.entropy import EntropyCoefficient
from sb3_hybrid_grpo.group_algorithm import GroupOnPolicyAlgorithm
from sb3_hybrid_grpo.recording import Gradient, can_be_recorded
from sb3_hybrid_grpo.sampling import DIVERGED, evaluate_actions


class Statistics(NamedTuple):
    """What is logged of a minibatch, as SB3's PPO names it."""

    value_loss: Any
    approx_kl: Any
    clip_fraction: Any
    policy_gradient_loss: Any
    entropy_loss: Any
    loss: Any


_APPROX_KL, _ENTROPY_LOSS = map(Statistics._fields.index, ("approx_kl", "entropy_loss"))


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
    target_entropy: float | Literal["auto"]
    entropy: EntropyCoefficient
    _gradient: Gradient | None = None
    _gradient_read: tuple[Any, ...] = ()

    def train(self) -> None:
        """Update the policy with the rollout."""
        self.policy.set_training_mode(True)
        if self.ent_coef != self.entropy.given:  # set since, by a callback that anneals it, say
            self.entropy = self._make_entropy()
        optimizers = [self.policy.optimizer, self.entropy.optimizer]
        self._update_learning_rate([one for one in optimizers if one is not None])
        progress = self._current_progress_remaining
        clip_range = cast(Schedule, self.clip_range)(progress)
        clip_range_vf = None if self.clip_range_vf is None else cast(Schedule, self.clip_range_vf)(progress)
        known = can_be_recorded(self.policy, self.observation_space)
        gradient = self._gradient_of(clip_range, clip_range_vf, known)
        statistics: list[th.Tensor] = []
        with steps_of(self.policy.optimizer, same_parameters=known) as step:
            for epoch in range(self.n_epochs):
                go_on = self._train_epoch(epoch, gradient, step, statistics)
                self._n_updates += 1
                if not go_on:
                    break

        logged = Statistics(*th.stack(statistics).double().mean(dim=0).tolist())._asdict()
        if not math.isfinite(logged["loss"]):
            raise ValueError(f"The loss is no finite number any more, and the update has spoilt the policy. {DIVERGED}")
        if self.advantage_estimator == "grpo":  # which has no critic
            del logged["value_loss"]
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        self._log_update(clip_range, clip_range_vf)

    def _make_entropy(self) -> EntropyCoefficient:
        return EntropyCoefficient(self.ent_coef, self.target_entropy, self.action_space, self.lr_schedule(1), self.device)

    def _train_epoch(self, epoch: int, gradient: Gradient, step: Callable[[], None], statistics: list[th.Tensor]) -> bool:
        """Go through the rollout once; False if the policy went too far. Nothing waits for a number that is only logged."""
        for batch in self.rollout_buffer.get(self.batch_size):
            values = gradient(batch)
            statistics.append(values)
            self.entropy.adapt(-values[_ENTROPY_LOSS])
            if self.target_kl is not None and (approx_kl := values[_APPROX_KL].item()) > 1.5 * self.target_kl:
                if self.verbose >= 1:
                    print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                return False
            step()
        return True

    def _gradient_of(self, clip_range: float, clip_range_vf: float | None, known: bool) -> Gradient:
        """What gives the gradient of :meth:`_loss`: that of the last update, unless the loss has become another function."""
        read = (
            *(clip_range, clip_range_vf, self.max_grad_norm, self.vf_coef, self.normalize_advantage),
            *(self.entropy.value(self._current_progress_remaining), self.sampling_temperature, self.advantage_estimator),
            *(self.policy.modules()),
            *(id(one) for one in (self, *self.policy.parameters())),  # of a copy of the model: its own
            *(parameter.requires_grad for parameter in self.policy.parameters()),
        )
        # only what stays for more than an update is recorded: a schedule would be at each
        same = self._gradient is not None and self._gradient_read == read
        records = same and known and self.entropy.optimizer is None
        if self._gradient is None or not same or self._gradient.records != records:
            self._gradient = Gradient(
                self.policy, lambda batch: self._loss(batch, clip_range, clip_range_vf), self.max_grad_norm, records
            )
            self._gradient_read = read
        return self._gradient

    def _loss(self, batch: Any, clip_range: float, clip_range_vf: float | None) -> tuple[th.Tensor, th.Tensor]:
        """The loss of a minibatch, and :class:`Statistics` in a tensor."""
        actions = batch.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else batch.actions
        values, log_prob, entropy = self._evaluate(batch, actions)
        advantages = losses.normalize_advantages(batch.advantages) if self.normalize_advantage else batch.advantages
        log_ratio = log_prob - batch.old_log_prob
        ratio = th.exp(log_ratio)
        weights = None if self.sampling_temperature == 1 else batch.weights
        policy_loss = losses.clipped_surrogate(advantages, ratio, clip_range, weights)
        entropy_loss = losses.entropy_loss(entropy, log_prob)
        value_loss = losses.value_loss(values, batch.old_values, batch.returns, clip_range_vf, weights)
        loss = policy_loss + self.entropy.value(self._current_progress_remaining) * entropy_loss
        if self.advantage_estimator != "grpo":  # which has no critic
            loss = loss + self.vf_coef * value_loss
        with th.no_grad():
            approx_kl, clip_fraction = losses.approximate_kl(log_ratio, weights), losses.clip_fraction(ratio, clip_range)
            statistics = Statistics(value_loss, approx_kl, clip_fraction, policy_loss, entropy_loss, loss)
            return loss, th.stack(statistics)

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

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_gradient", "_gradient_read"]

    def __getstate__(self) -> dict[str, Any]:
        """Recordings cannot be pickled; a copy makes its own."""
        return {key: its for key, its in vars(self).items() if key not in ("_gradient", "_gradient_read", "_recorded")}
