"""PPO's update of a policy, with the gradient of the loss replayed as a graph."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance

from sb3_hybrid_grpo.flat_adam import FlatAdam, can_be_flat, flat
from sb3_hybrid_grpo.graph_replay import GraphReplay, graph_key
from sb3_hybrid_grpo.losses import Coefficients, Statistics, ppo_loss

_APPROX_KL = Statistics._fields.index("approx_kl")


class ReplayedUpdate:
    """
    ``PPO.train`` for policies whose gradient can be replayed: the same numbers in less time.

    :param model: PPO, MaskablePPO or a subclass
    """

    def __init__(self, model: Any) -> None:
        self.key = self.key_of(model)
        self._discrete = isinstance(model.action_space, spaces.Discrete)
        self._clips_values = model.clip_range_vf is not None
        self._normalize_advantage, self._max_grad_norm = model.normalize_advantage, model.max_grad_norm
        self._policy: Any = model.policy
        self._trained = [one for one in model.policy.parameters() if one.requires_grad]
        self._gradient = GraphReplay(self._compute)
        self._kind: Any = None

    @staticmethod
    def key_of(model: Any) -> tuple[Any, ...]:
        """The attributes of a model that determine the function that computes the gradient, the policy's key last."""
        options = (model.clip_range_vf is None, model.normalize_advantage, model.max_grad_norm)
        return id(model), *options, graph_key(model.policy, model.observation_space)

    def can_run(self, model: Any) -> bool:
        """Whether the replay gives the same numbers as ``PPO.train`` for the model's policy and optimizer."""
        return self.key[-1] is not None and can_be_flat(model.policy.optimizer, self._trained)

    def run(self, model: Any) -> None:
        """Update the model's policy with its rollout, and log as ``PPO.train`` does."""
        model.policy.set_training_mode(True)
        model._update_learning_rate(model.policy.optimizer)
        progress = model._current_progress_remaining
        clip_range = model.clip_range(progress)
        clip_range_vf = model.clip_range_vf(progress) if self._clips_values else None
        coefficients = Coefficients.of(clip_range, clip_range_vf or 0.0, model.ent_coef, model.vf_coef)
        statistics: list[th.Tensor] = []
        with FlatAdam(model.policy.optimizer, self._trained) as adam:
            for epoch in range(model.n_epochs):
                last_epoch = len(statistics)
                go_on = self._run_epoch(model, coefficients, adam, statistics, epoch)
                model._n_updates += 1
                if not go_on:
                    break
        values = th.stack(statistics).double().numpy()
        logged = Statistics(*values.mean(axis=0))
        logged = logged._replace(approx_kl=values[last_epoch:, _APPROX_KL].mean(), loss=values[-1, -1])
        for name, value in logged._asdict().items():
            model.logger.record(f"train/{name}", value)
        self._log(model, clip_range, clip_range_vf)

    def _run_epoch(
        self, model: Any, coefficients: Coefficients, adam: FlatAdam, statistics: list[th.Tensor], epoch: int
    ) -> bool:
        """Go through the rollout once; False if the KL divergence exceeds 1.5 ``target_kl``."""
        for batch in model.rollout_buffer.get(model.batch_size):
            gradient, values = self._gradient(*self._tensors(batch), *coefficients)
            statistics.append(values)
            if model.target_kl is not None and (approx_kl := values[_APPROX_KL].item()) > 1.5 * model.target_kl:
                if model.verbose >= 1:
                    print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                return False
            adam.step(gradient)
        return True

    def _tensors(self, batch: Any) -> tuple[th.Tensor, ...]:
        observations, *others = batch
        self._kind = (type(batch), list(observations) if isinstance(observations, dict) else None)
        return (*(observations.values() if isinstance(observations, dict) else [observations]), *others)

    def _compute(self, *tensors: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The clipped gradient of the loss, flat, and its statistics."""
        samples_class, keys = self._kind
        coefficients = Coefficients(*tensors[-len(Coefficients._fields) :])
        tensors = tensors[: -len(Coefficients._fields)]
        batch = (
            samples_class(*tensors)
            if keys is None
            else samples_class(dict(zip(keys, tensors, strict=False)), *tensors[len(keys) :])
        )
        actions = batch.actions.long().flatten() if self._discrete else batch.actions
        masks = {"action_masks": batch.action_masks} if "action_masks" in samples_class._fields else {}
        evaluated = self._policy.evaluate_actions(batch.observations, actions, **masks)
        old = (batch.old_values, batch.old_log_prob, batch.advantages, batch.returns)
        loss, statistics = ppo_loss(evaluated, *old, coefficients, self._clips_values, self._normalize_advantage)
        gradients = th.autograd.grad(loss, self._trained, materialize_grads=True)
        norm = th.nn.utils.get_total_norm(gradients)
        scale = th.clamp(self._max_grad_norm / (norm + 1e-6), max=1.0)
        return flat(gradients) * scale, statistics

    @staticmethod
    def _log(model: Any, clip_range: float, clip_range_vf: float | None) -> None:
        buffer, log = model.rollout_buffer, model.logger.record
        log("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(model.policy, "log_std"):
            log("train/std", th.exp(model.policy.log_std).mean().item())
        log("train/n_updates", model._n_updates, exclude="tensorboard")
        log("train/clip_range", clip_range)
        if clip_range_vf is not None:
            log("train/clip_range_vf", clip_range_vf)


class FastUpdate(OnPolicyAlgorithm):
    """A mixin for PPO and MaskablePPO: it replays their update, if the replay gives the same numbers."""

    advantage_estimator: Any
    _update: ReplayedUpdate | None = None

    def train(self) -> None:
        """Update the policy with the rollout, as PPO does."""
        vf_coef = self.vf_coef
        try:
            self.vf_coef = 0.0 if self.advantage_estimator == "grpo" else vf_coef  # GRPO has no critic
            if self._update is None or self._update.key != ReplayedUpdate.key_of(self):
                self._update = ReplayedUpdate(self)
            if self._update.can_run(self):
                self._update.run(self)
            else:
                super().train()
        finally:
            self.vf_coef = vf_coef
