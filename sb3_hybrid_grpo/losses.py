"""
Loss of Proximal Policy Optimization (PPO, https://arxiv.org/abs/1707.06347): pure torch, no state.

Operations and their order are the same as in Stable-Baselines3's PPO, so that results are bit-identical.
"""

from typing import NamedTuple

import torch as th
from torch.nn import functional as F


class Coefficients(NamedTuple):
    """
    Coefficients of the loss as scalar tensors: inputs of the recorded graph, which a schedule may change.

    :param smallest_ratio: 1 - clip_range
    :param largest_ratio: 1 + clip_range
    :param clip_range: How far the ratio may go from 1 before its gradient is dropped
    :param clip_range_vf: How far a value may go from the old one before its gradient is dropped, in units of discounted reward
    :param ent_coef: Entropy coefficient
    :param vf_coef: Value function coefficient
    """

    smallest_ratio: th.Tensor
    largest_ratio: th.Tensor
    clip_range: th.Tensor
    clip_range_vf: th.Tensor
    ent_coef: th.Tensor
    vf_coef: th.Tensor

    @classmethod
    def of(cls, clip_range: float, clip_range_vf: float, ent_coef: float, vf_coef: float) -> "Coefficients":
        """Make the tensors from numbers; ``clip_range_vf`` has no effect if values are not clipped."""
        numbers = (1 - clip_range, 1 + clip_range, clip_range, clip_range_vf, ent_coef, vf_coef)
        return cls(*(th.tensor(number, dtype=th.float32) for number in numbers))


class Statistics(NamedTuple):
    """The scalars that SB3's PPO logs for a minibatch. :func:`ppo_loss` returns them as one tensor, in this order."""

    policy_gradient_loss: th.Tensor
    clip_fraction: th.Tensor
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    approx_kl: th.Tensor
    loss: th.Tensor


def ppo_loss(
    evaluated: tuple[th.Tensor, th.Tensor, th.Tensor | None],
    old_values: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    returns: th.Tensor,
    coefficients: Coefficients,
    clips_values: bool,
    normalize_advantage: bool,
) -> tuple[th.Tensor, th.Tensor]:
    r"""
    PPO's loss of a minibatch of B samples.

    .. math::
        L = -mean(\min(A \rho, A\, clip(\rho, 1 - \epsilon, 1 + \epsilon))) - c_e\, mean(H) + c_v\, mean((R - V)^2),
        \qquad \rho = \exp(\log\pi - \log\pi_{old})

    :param evaluated: Result of ``policy.evaluate_actions``: values ``(B, 1)``, log-probabilities ``(B,)`` and entropies
        ``(B,)`` in nats. Entropies are None if they have no closed form; minus the log-probabilities then replace them
    :param old_values: Values when the rollout was collected, ``(B,)``
    :param old_log_prob: Log-probabilities when the rollout was collected, ``(B,)``
    :param advantages: A, ``(B,)``
    :param returns: R, the critic's targets, ``(B,)``
    :param coefficients: ε and the coefficients
    :param clips_values: Whether V is kept within ``clip_range_vf`` of the old values
    :param normalize_advantage: Whether A gets mean 0 and standard deviation 1; a single sample is left as it is
    :return: The loss, and the :class:`Statistics`, stacked
    """
    values, log_prob, entropy = evaluated
    values = values.flatten()
    if normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = th.exp(log_prob - old_log_prob)
    clipped = _clipped(ratio, coefficients.smallest_ratio, coefficients.largest_ratio)
    policy_loss = -th.min(advantages * ratio, advantages * clipped).mean()
    if clips_values:
        limit = coefficients.clip_range_vf
        values = old_values + _clipped(values - old_values, -limit, limit)
    value_loss = F.mse_loss(returns, values)
    entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)
    loss = policy_loss + coefficients.ent_coef * entropy_loss + coefficients.vf_coef * value_loss
    with th.no_grad():
        log_ratio = log_prob - old_log_prob
        # estimator k3 of http://joschu.net/blog/kl-approx.html
        approx_kl = th.mean((th.exp(log_ratio) - 1) - log_ratio)
        clip_fraction = th.mean((th.abs(ratio - 1) > coefficients.clip_range).float())
        statistics = Statistics(policy_loss, clip_fraction, value_loss, entropy_loss, approx_kl, loss)
        return loss, th.stack(statistics)


def _clipped(values: th.Tensor, lowest: th.Tensor, highest: th.Tensor) -> th.Tensor:
    """``th.clamp`` with numbers as bounds, as in PPO. With tensors as bounds, some versions of torch have another gradient."""
    below, above = (th.lt, th.gt) if _BOUNDS_HAVE_GRADIENTS else (th.le, th.ge)
    values = th.where(below(values, lowest), lowest, values)
    return th.where(above(values, highest), highest, values)  # the upper bound last: a schedule may end just below 0


with th.inference_mode(False), th.enable_grad():  # wherever a user imports this
    _bound = th.ones(1, requires_grad=True)
    _BOUNDS_HAVE_GRADIENTS = bool(th.autograd.grad(th.clamp(_bound, 1.0, 2.0), _bound)[0])  # since torch 2.14 they have none
