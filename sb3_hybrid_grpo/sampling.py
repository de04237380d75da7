"""Several actions of one state from one pass through the policy's networks."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

# What a policy may override; only where it does not, its parts can be called one by one.
_WHOLE_PASSES = ("forward", "evaluate_actions", "extract_features")


def sample_actions(policy: ActorCriticPolicy, obs: PyTorchObs, n_samples: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Sample N actions in each of B states. Features and values are computed once a state.

    :param policy: The policy
    :param obs: Observations of B states
    :param n_samples: N
    :return: Actions ``(N * B, ...)``, sample by sample; values ``(B, 1)``; log-probabilities ``(N * B,)``
    """
    if n_samples == 1:
        return policy(obs)  # type: ignore[no-any-return]
    if _overridden(policy):
        actions, values, log_prob = policy(_repeated(obs, n_samples))
        return actions, values[: len(values) // n_samples], log_prob
    latent_pi, latent_vf = _latents(policy, obs)
    distribution = policy._get_action_dist_from_latent(latent_pi.repeat(n_samples, 1))
    actions = distribution.get_actions()
    log_prob = distribution.log_prob(actions)
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
    if n_samples == 1 or _overridden(policy):
        values, log_prob, entropy = policy.evaluate_actions(_repeated(obs, n_samples), actions)
        return values.flatten(), log_prob, entropy
    latent_pi, latent_vf = _latents(policy, obs)
    distribution = policy._get_action_dist_from_latent(latent_pi.repeat(n_samples, 1))
    values = policy.value_net(latent_vf).flatten().repeat(n_samples)
    return values, distribution.log_prob(actions), distribution.entropy()


def _overridden(policy: ActorCriticPolicy) -> bool:
    kind = type(policy)
    return any(getattr(kind, name) is not getattr(ActorCriticPolicy, name) for name in _WHOLE_PASSES)


def _latents(policy: ActorCriticPolicy, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    features = policy.extract_features(obs)
    if isinstance(features, tuple):
        return policy.mlp_extractor.forward_actor(features[0]), policy.mlp_extractor.forward_critic(features[1])
    return policy.mlp_extractor(features)  # type: ignore[no-any-return]


def _repeated(obs: PyTorchObs, n_samples: int) -> PyTorchObs:
    if n_samples == 1:
        return obs
    if isinstance(obs, dict):
        return {key: th.cat([value] * n_samples) for key, value in obs.items()}
    return th.cat([obs] * n_samples)
