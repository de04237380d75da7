"""Scores of a policy's actions: the gradients of their log-probabilities, without a backward pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn import functional as F

from sb3_hybrid_grpo.gradient_variance import GradientVariances, gradient_variances
from sb3_hybrid_grpo.notices import notice

_ROWS = 4096  # in one forward pass: a whole rollout of images would fill the memory


def scores_of(distribution: Distribution, actions: th.Tensor) -> th.Tensor | None:
    r"""
    Differentiate log-probabilities with respect to a distribution's parameters.

    Gaussian: :math:`(a - \mu) / \sigma^2`, with respect to the mean. Categorical and Bernoulli: the action (one-hot) minus its
    probabilities, with respect to the logits.

    :param distribution: SB3's distribution of B actions
    :param actions: The actions, ``(B, action_dim)``
    :return: ``(B, parameters)``; None for a distribution of another kind
    """
    parts: Any = getattr(distribution, "distributions", None) or distribution.distribution  # with masks it is a list
    if isinstance(parts, Normal):
        bijector = getattr(distribution, "bijector", None)  # for squashed actions
        unsquashed = actions if bijector is None else bijector.inverse(actions)
        return (unsquashed - parts.loc) / parts.scale**2
    if isinstance(parts, Bernoulli):
        return actions - parts.probs
    columns = parts if isinstance(parts, list) else [parts]
    if not all(isinstance(part, Categorical) for part in columns):
        return None
    chosen = actions.long()
    scores = [F.one_hot(chosen[:, i], part.logits.shape[-1]) - part.probs for i, part in enumerate(columns)]
    return th.cat(scores, dim=-1)


def scores_and_features(
    policy: Any, buffer: Any, distribution_of: Callable[[Any, slice], Distribution]
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Evaluate the actions of a rollout. Must be called before the buffer is flattened.

    :param policy: The policy that has made the rollout
    :param buffer: The rollout buffer
    :param distribution_of: Gives the policy's distribution for the observations of some steps
    :return: Scores ``(T, N * E, parameters)`` and the inputs of the actor's last layer ``(T, N * E, features)``, ones where
        the policy has no ``action_net``; None for a distribution of an unknown kind
    """
    n_steps, n_columns = buffer.values.shape
    size = max(1, _ROWS // n_columns)
    seen: list[Any] = []
    scores: list[np.ndarray] = []
    features: list[np.ndarray] = []
    layer = getattr(policy, "action_net", None)
    layer = layer if isinstance(layer, nn.Module) else nn.Identity()
    with layer.register_forward_pre_hook(lambda _, its: seen.extend(its[:1])), th.no_grad():
        for start in range(0, n_steps, size):
            steps = slice(start, start + size)
            distribution = distribution_of(_flat(buffer, buffer.observations, steps), steps)
            of_rows = scores_of(distribution, _flat(buffer, buffer.actions, steps))
            if of_rows is None:
                return None
            scores.append(of_rows.cpu().numpy())
            inputs: Any = seen.pop() if seen else None
            known = isinstance(inputs, th.Tensor)
            features.append(inputs.cpu().numpy() if known else np.ones((len(of_rows), 1), dtype=np.float32))
    of_scores, of_features = (np.concatenate(one).reshape(n_steps, n_columns, -1) for one in (scores, features))
    return of_scores, of_features


def measured_variances(
    policy: Any, buffer: Any, distribution_of: Callable[[Any, slice], Distribution], centred: bool = False
) -> GradientVariances | None:
    """
    Measure the variance of the policy gradient in a grouped rollout, see :mod:`sb3_hybrid_grpo.gradient_variance`.

    :param policy: The policy that has made the rollout
    :param buffer: The rollout buffer, with the advantages of the estimator "hybrid"
    :param distribution_of: As in :func:`scores_and_features`
    :param centred: Whether to subtract the advantages' mean before, as PPO does in each minibatch. Otherwise a critic that is
        off by a constant lets the variance of independent steps look larger than it is in PPO's update
    :return: The variances; None if they cannot be computed
    """
    try:
        found = scores_and_features(policy, buffer, distribution_of)
    except Exception as error:  # PPO trains policies without get_distribution, too
        notice(f"The variance of the policy gradient is not measured, and rollouts keep their kind and length: {error!r}")
        return None
    if found is None:
        return None
    scores_TENA, features_TENH = map(buffer.as_TEN, found)
    forks_TE = buffer.as_TEN(buffer.episode_starts)[:, :, 1:].all(axis=2)
    advantages_TEN, plain_TEN = buffer.as_TEN(buffer.advantages), buffer.plain_TEN
    if centred:
        advantages_TEN, plain_TEN = advantages_TEN - advantages_TEN.mean(), plain_TEN - plain_TEN.mean()
    return gradient_variances(scores_TENA, features_TENH, advantages_TEN, plain_TEN, forks_TE)


def _flat(buffer: Any, array: Any, steps: slice) -> Any:
    """Rows of some steps, flattened step by step, as tensors; for a dict, each key's."""
    if isinstance(array, dict):
        return {key: _flat(buffer, value, steps) for key, value in array.items()}
    return buffer.to_torch(array[steps].reshape(-1, *array.shape[2:]))
