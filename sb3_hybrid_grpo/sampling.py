"""Several actions of one state from one pass through the policy's networks."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_hybrid_grpo.recording import Recorded

Policy = ActorCriticPolicy | MaskableActorCriticPolicy
Rows = TypeVar("Rows", th.Tensor, dict[str, th.Tensor], PyTorchObs)

# What a policy may override; only where it does not, its parts can be called one by one.
_WHOLE_PASSES = ("forward", "evaluate_actions", "extract_features")
# What can be tempered in closed form. Of these very classes: a subclass may do anything with a sample, as squashing it.
_TEMPERED = (DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)


DIVERGED = (
    "The policy gives NaN: its parameters have diverged, or an observation is NaN or infinite. "
    "Lower the learning rate, normalise observations and rewards (VecNormalize), and look for NaN with VecCheckNan."
)


def sample_actions(
    policy: Policy,
    obs: PyTorchObs,
    n_samples: int,
    temperature: float = 1.0,
    action_masks: np.ndarray | None = None,
    recorded: Recorded | None = None,
) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor | None]:
    r"""
    Sample N actions in each of B states. Features and values are computed once a state.

    The first sample of a state is the policy's, the others are drawn from the tempered policy μ. Weighted, they stand for
    samples of the policy:

    .. math::
        \mu(a) = \frac{\pi(a)^{1/\tau}}{\int \pi^{1/\tau}}, \qquad
        w(a) = \frac{\pi(a)}{\mu(a)}, \qquad E_\mu[w(a) g(a)] = E_\pi[g(a)]

    :param policy: The policy
    :param obs: Observations of B states
    :param n_samples: N
    :param temperature: τ; other than 1 only for a policy that :func:`check_can_be_tempered` lets pass
    :param action_masks: Which actions are valid in each state, ``(B, ...)``; None: all. Only for a maskable policy
    :param recorded: What :func:`recorded_sampling` gave for the policy, N and τ; None: nothing is recorded
    :return: Actions ``(N * B, ...)``, sample by sample; values ``(B, 1)``; log π of the actions ``(N * B,)``; their weights w
        ``(N * B,)``, None for τ = 1, where all are 1
    :raises ValueError: if the policy gives NaN
    """
    masks = None if action_masks is None else np.concatenate([action_masks] * n_samples)
    if _overridden(policy):
        actions, values, log_prob = policy(_repeated(obs, n_samples), **_masked(masks))
        return actions, values[: len(values) // n_samples], log_prob, None
    try:
        if recorded is not None and isinstance(obs, th.Tensor):
            actions, values, log_prob, *others = recorded(obs)
        else:
            actions, values, log_prob, *others = _drawn(policy, obs, n_samples, temperature, masks)
    except RuntimeError as error:
        if _gives_numbers(policy, obs):
            raise  # an error of its own
        raise ValueError(DIVERGED) from error  # torch's, of probabilities that are no numbers
    if th.isnan(log_prob).any():
        raise ValueError(DIVERGED)
    return actions, values, log_prob, others[0] if others else None


def _gives_numbers(policy: Policy, obs: PyTorchObs) -> bool:
    """Whether what a distribution is made of are numbers, as far as the policy comes without an error."""
    tensors: list[th.Tensor] = list(policy.parameters())
    with suppress(RuntimeError):
        tensors += _latents(policy, obs)
    return all(bool(one.isfinite().all()) for one in tensors)


def recorded_sampling(policy: Policy, n_samples: int, temperature: float) -> Recorded:
    """
    :param policy: A policy over arrays that can be recorded
    :param n_samples: N
    :param temperature: τ
    :return: What makes :func:`sample_actions` faster
    """
    return Recorded(lambda obs: _drawn(policy, obs, n_samples, temperature, None))


def _drawn(policy: Policy, obs: PyTorchObs, n_samples: int, temperature: float, masks: Any) -> tuple[th.Tensor, ...]:
    """Actions, values, log-probabilities, and weights where they are not all 1."""
    with _without_validation():
        latent_pi, latent_vf = _latents(policy, obs)
        distribution = _distribution(policy, _repeated(latent_pi, n_samples), masks)
        drawn_from = distribution if temperature == 1 else _tempered(distribution, temperature, len(latent_pi))
        actions = drawn_from.get_actions()
        log_prob = distribution.log_prob(actions)
        shaped = actions.reshape((-1, *(policy.action_space.shape or ())))
        if drawn_from is distribution:
            return shaped, policy.value_net(latent_vf), log_prob
        weights = th.exp(log_prob - drawn_from.log_prob(actions))
        weights[: len(latent_pi)] = 1.0  # but for rounding they are
    return shaped, policy.value_net(latent_vf), log_prob, weights


def evaluate_actions(
    policy: Policy, obs: PyTorchObs, actions: th.Tensor, n_samples: int, action_masks: th.Tensor | None = None
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate N actions in each of B states. Features and values are computed once a state.

    :param policy: The policy
    :param obs: Observations of B states
    :param actions: ``(N * B, ...)``, sample by sample
    :param n_samples: N
    :param action_masks: Which actions were valid, ``(N * B, ...)``; None: all. Only for a maskable policy
    :return: Values ``(N * B,)``, log-probabilities ``(N * B,)`` and entropies (None where they have no closed form)
    """
    if _overridden(policy):
        repeated: Any = _repeated(obs, n_samples)
        values, log_prob, entropy = policy.evaluate_actions(repeated, actions, **_masked(action_masks))
        return values.flatten(), log_prob, entropy
    with _without_validation():
        latent_pi, latent_vf = _latents(policy, obs)
        distribution = _distribution(policy, _repeated(latent_pi, n_samples), action_masks)
        values = _repeated(policy.value_net(latent_vf).flatten(), n_samples)
        return values, distribution.log_prob(actions), distribution.entropy()


def check_can_be_tempered(policy: Policy, temperature: float) -> None:
    """
    Check that :func:`sample_actions` can draw from the tempered policy. Warns where that makes for wild weights.

    :param policy: The policy
    :param temperature: τ; any policy will do for 1
    :raises ValueError: if it cannot; says why and how to fix it
    """
    if temperature == 1:
        return
    received = f"Received sampling_temperature={temperature} with the policy {type(policy).__name__}"
    if _overridden(policy):
        raise ValueError(
            f"{received}, which overrides one of {', '.join(_WHOLE_PASSES)}: the distribution that it draws actions from "
            "is not seen from outside. Leave it at 1.0, or use a policy with none of these of its own."
        )
    with th.no_grad():
        latent_pi = th.zeros(1, policy.mlp_extractor.latent_dim_pi, device=policy.device)
        kind = type(policy._get_action_dist_from_latent(latent_pi))
    if kind not in _TEMPERED:
        known = ", ".join(one.__name__ for one in _TEMPERED)
        raise ValueError(
            f"{received}, whose actions follow a {kind.__name__}: only these can be tempered: {known}. "
            "Leave it at 1.0, or use a policy with one of them."
        )
    if kind is DiagGaussianDistribution and temperature <= 0.5:
        warnings.warn(
            f"With sampling_temperature={temperature} the weights of Gaussian actions have an infinite variance: gradients "
            "are right on average, and any of them may be far off. We recommend a `sampling_temperature` above 0.5.",
            stacklevel=2,
        )


def _tempered(distribution: Distribution, temperature: float, n_states: int) -> Distribution:
    """π^(1/τ), normalised; the first rows, one a state, stay π."""
    tempered, parts = copy.copy(distribution), distribution.distribution
    if isinstance(parts, list):
        tempered.distribution = [_tempered_part(part, temperature, n_states) for part in parts]
    else:
        tempered.distribution = _tempered_part(parts, temperature, n_states)
    return tempered


def _tempered_part(part: Any, temperature: float, n_states: int) -> th.distributions.Distribution:
    """A Gaussian of variance τσ²; of a Categorical or Bernoulli distribution, the logits over τ."""
    gaussian = isinstance(part, th.distributions.Normal)
    parameters = part.scale if gaussian else part.logits
    temperatures = parameters.new_full((len(parameters), 1), temperature)
    temperatures[:n_states] = 1.0
    if gaussian:
        return th.distributions.Normal(part.loc, parameters * temperatures.sqrt())
    return type(part)(logits=parameters / temperatures)  # type: ignore[no-any-return]


@contextmanager
def _without_validation() -> Iterator[None]:
    """Torch checks every parameter and sample of a distribution, at a tenth of the cost of a pass through a small network."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


def _overridden(policy: Policy) -> bool:
    kind = type(policy)
    base: type[Policy] = ActorCriticPolicy if issubclass(kind, ActorCriticPolicy) else MaskableActorCriticPolicy
    return any(getattr(kind, name) is not getattr(base, name) for name in _WHOLE_PASSES)


def _distribution(policy: Policy, latent_pi: th.Tensor, masks: Any) -> Any:
    distribution: Any = policy._get_action_dist_from_latent(latent_pi)
    if masks is not None:
        distribution.apply_masking(masks)
    return distribution


def _masked(masks: Any) -> dict[str, Any]:
    return {} if masks is None else {"action_masks": masks}


def _latents(policy: Policy, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
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
