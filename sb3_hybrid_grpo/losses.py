"""
Losses of Proximal Policy Optimization (PPO, https://arxiv.org/abs/1707.06347): pure torch, no state.

The operations and their order are those of Stable-Baselines3's PPO, so that the results are the same to the last bit.
Weights are for actions drawn from another distribution μ than the policy π that collected them: ``w = π(a) / μ(a)``, so that
``E_μ[w x] = E_π[x]``.
"""

import torch as th
from torch.nn import functional as F


def clipped_surrogate(
    advantages: th.Tensor, ratio: th.Tensor, clip_range: float, weights: th.Tensor | None = None
) -> th.Tensor:
    """
    Policy loss: ``-mean(w * min(A * ratio, A * clip(ratio, 1 - clip_range, 1 + clip_range)))``.

    :param advantages: A, shape (batch,)
    :param ratio: new over old probability of each action, shape (batch,), positive
    :param clip_range: how far the ratio may go from 1 before its gradient is dropped, greater than 0
    :param weights: w, shape (batch,), not negative; None if all are 1
    :return: the loss, a scalar
    """
    policy_loss_1 = advantages * ratio
    policy_loss_2 = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    smaller = th.min(policy_loss_1, policy_loss_2)
    return -(smaller if weights is None else weights * smaller).mean()


def value_loss(
    values: th.Tensor,
    old_values: th.Tensor,
    returns: th.Tensor,
    clip_range_vf: float | None,
    weights: th.Tensor | None = None,
) -> th.Tensor:
    """
    Critic loss: mean squared error against the returns, ``mean(w * (R - V)^2)``.

    :param values: the critic's values now, shape (batch,)
    :param old_values: its values when the rollout was collected, shape (batch,)
    :param returns: targets, shape (batch,), in units of discounted reward
    :param clip_range_vf: how far values may go from the old ones before their gradient is dropped, in the same
        units, greater than 0; None for no limit
    :param weights: w, shape (batch,), not negative; None if all are 1
    :return: the loss, a scalar
    """
    if clip_range_vf is not None:
        values = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
    return F.mse_loss(returns, values) if weights is None else (weights * (returns - values) ** 2).mean()


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """
    Minus the mean entropy of the policy.

    :param entropy: entropy in each state, shape (batch,), in nats; None where it has no closed form
    :param log_prob: log probability of each action, shape (batch,): its minus mean estimates a missing entropy
    :return: the loss, a scalar
    """
    if entropy is None:
        return -th.mean(-log_prob)
    return -th.mean(entropy)


def approximate_kl(log_ratio: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    """
    KL divergence of the new from the old policy, ``mean(w * ((ratio - 1) - log(ratio)))``.

    Unbiased and never negative: estimator k3 of http://joschu.net/blog/kl-approx.html.

    :param log_ratio: log of new over old probability of each action, shape (batch,)
    :param weights: w, shape (batch,), not negative; None if all are 1
    :return: the estimate, a scalar in nats
    """
    estimates = (th.exp(log_ratio) - 1) - log_ratio
    return th.mean(estimates if weights is None else weights * estimates)


def clip_fraction(ratio: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Share of the batch whose ratio lies outside the clip range.

    :param ratio: new over old probability of each action, shape (batch,)
    :param clip_range: as in :func:`clipped_surrogate`
    :return: the share, a scalar in [0, 1]
    """
    return th.mean((th.abs(ratio - 1) > clip_range).float())


def normalize_advantages(advantages: th.Tensor) -> th.Tensor:
    """
    Advantages with mean 0 and standard deviation 1 over the minibatch.

    :param advantages: A, shape (batch,)
    :return: the same shape; a single advantage is left as it is, for it has no deviation
    """
    if len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return advantages
