"""Several actions of one state from one pass through the policy's networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

Rows = TypeVar("Rows", th.Tensor, dict[str, th.Tensor], PyTorchObs)

# What a policy may override; only where it does not, its parts can be called one by one.
_WHOLE_PASSES = ("forward", "evaluate_actions", "extract_features")


DIVERGED = (
    "The policy gives NaN: its parameters have diverged, or an observation is NaN or infinite. "
    "Lower the learning rate, normalise observations and rewards (VecNormalize), and look for NaN with VecCheckNan."
)


def sample_actions(policy: ActorCriticPolicy, obs: PyTorchObs, n_samples: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Sample N actions in each of B states. Features and values are computed once a state.

    :param policy: The policy
    :param obs: Observations of B states
    :param n_samples: N
    :return: Actions ``(N * B, ...)``, sample by sample; values ``(B, 1)``; log-probabilities ``(N * B,)``
    :raises ValueError: if the policy gives NaN
    """
    if _overridden(policy):
        actions, values, log_prob = policy(_repeated(obs, n_samples))
        return actions, values[: len(values) // n_samples], log_prob
    with _without_validation():
        latent_pi, latent_vf = _latents(policy, obs)
        distribution = policy._get_action_dist_from_latent(_repeated(latent_pi, n_samples))
        try:
            actions = distribution.get_actions()
        except RuntimeError as error:  # torch's, of probabilities that are no numbers
            raise ValueError(DIVERGED) from error
        log_prob = distribution.log_prob(actions)
    if th.isnan(log_prob).any():
        raise ValueError(DIVERGED)
    return actions.reshape((-1, *(policy.action_space.shape or ()))), policy.value_net(latent_vf), log_prob


def evaluate_actions(
    policy: ActorCriticPolicy, obs: PyTorchObs, actions: th.Tensor, n_samples: int
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate N actions in each of B states. Features and values are computed once a state.

    :param policy: The policy
    :param obs: Observations of B states
    :param actions: ``(N * B, ...)``, sample by sample
    :param n_samples: N
    :return: Values ``(N * B,)``, log-probabilities ``(N * B,)`` and entropies (None where they have no closed form)
    """
    if _overridden(policy):
        values, log_prob, entropy = policy.evaluate_actions(_repeated(obs, n_samples), actions)
        return values.flatten(), log_prob, entropy
    with _without_validation():
        latent_pi, latent_vf = _latents(policy, obs)
        distribution = policy._get_action_dist_from_latent(_repeated(latent_pi, n_samples))
        values = _repeated(policy.value_net(latent_vf).flatten(), n_samples)
        return values, distribution.log_prob(actions), distribution.entropy()


@contextmanager
def _without_validation() -> Iterator[None]:
    """Torch checks every parameter and sample of a distribution, at a tenth of the cost of a pass through a small network."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


def _overridden(policy: ActorCriticPolicy) -> bool:
    kind = type(policy)
    return any(getattr(kind, name) is not getattr(ActorCriticPolicy, name) for name in _WHOLE_PASSES)


def _latents(policy: ActorCriticPolicy, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    features = policy.extract_features(obs)
    if isinstance(features, tuple):
        return policy.mlp_extractor.forward_actor(features[0]), policy.mlp_extractor.forward_critic(features[1])
    return policy.mlp_extractor(features)  # type: ignore[no-any-return]


def _repeated(rows: Rows, n_samples: int) -> Rows:
    if n_samples == 1:
        return rows
    if isinstance(rows, dict):
        return {key: th.cat([value] * n_samples) for key, value in rows.items()}
    return th.cat([rows] * n_samples)
