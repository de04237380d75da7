"""N actions of a state from one pass give what N passes give."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_hybrid_grpo.sampling import evaluate_actions, sample_actions

N, B = 3, 5
VECTOR = spaces.Box(-1, 1, (4,), dtype=np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(-1, 1, (2,), dtype=np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
]


def make_policy(
    action_space: spaces.Space[Any],
    observation_space: spaces.Space[Any] = VECTOR,
    kind: type[ActorCriticPolicy] = ActorCriticPolicy,
    **kwargs: Any,
) -> ActorCriticPolicy:
    th.manual_seed(0)
    return kind(observation_space, action_space, lambda _: 1e-3, **kwargs)


def observe(space: spaces.Space[Any], n: int = B) -> Any:
    space.seed(1)
    samples = [space.sample() for _ in range(n)]
    batch = {k: np.stack([s[k] for s in samples]) for k in samples[0]} if isinstance(samples[0], dict) else np.stack(samples)
    return obs_as_tensor(batch, th.device("cpu"))


def assert_consistent(policy: ActorCriticPolicy, obs: Any) -> None:
    """Sampled and evaluated with shared features, and evaluated by the policy's own method on repeated observations."""
    actions, values, log_prob, weights = sample_actions(policy, obs, N)
    assert weights is None
    assert actions.shape[0] == N * B and values.shape == (B, 1) and log_prob.shape == (N * B,)
    shared_values, shared_log_prob, shared_entropy = evaluate_actions(policy, obs, actions, N)
    repeated = {k: th.cat([v] * N) for k, v in obs.items()} if isinstance(obs, dict) else th.cat([obs] * N)
    plain_values, plain_log_prob, plain_entropy = policy.evaluate_actions(repeated, actions)
    th.testing.assert_close(shared_values, plain_values.flatten())
    th.testing.assert_close(shared_values[:B], values.flatten())
    th.testing.assert_close(shared_log_prob, plain_log_prob)
    th.testing.assert_close(shared_log_prob, log_prob)
    assert (shared_entropy is None) == (plain_entropy is None)
    if shared_entropy is not None and plain_entropy is not None:
        th.testing.assert_close(shared_entropy, plain_entropy)


@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("share", [True, False])
def test_shared_features_change_no_number(action_space: spaces.Space[Any], share: bool) -> None:
    assert_consistent(make_policy(action_space, share_features_extractor=share), observe(VECTOR))


def test_images() -> None:
    assert_consistent(make_policy(ACTIONS[1], IMAGE, ActorCriticCnnPolicy), observe(IMAGE))


def test_dict_observations() -> None:
    space = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)})
    assert_consistent(make_policy(ACTIONS[0], space, MultiInputActorCriticPolicy), observe(space))


@pytest.mark.parametrize("kwargs", [{}, {"squash_output": True}])
def test_gsde_gives_distinct_actions(kwargs: dict[str, Any]) -> None:
    policy = make_policy(ACTIONS[0], use_sde=True, **kwargs)
    policy.reset_noise(N * B)
    obs = observe(VECTOR)
    assert_consistent(policy, obs)
    actions = sample_actions(policy, obs, N)[0].reshape(N, B, 2)
    assert (actions[0] != actions[1]).all() and (actions[1] != actions[2]).all()


def test_one_sample_is_the_policys_own_forward() -> None:
    policy, obs = make_policy(ACTIONS[0]), observe(VECTOR)
    th.manual_seed(5)
    *ours, _ = sample_actions(policy, obs, 1)
    th.manual_seed(5)
    for one, other in zip(ours, policy(obs), strict=True):
        assert th.equal(one, other)


class Shifted(ActorCriticPolicy):
    """A policy with a pass of its own."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 100, log_prob

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values + 100, log_prob, entropy


def test_a_policys_own_passes_are_called() -> None:
    policy, obs = make_policy(ACTIONS[0], kind=Shifted), observe(VECTOR)
    _, values, _, _ = sample_actions(policy, obs, N)
    assert (values > 50).all()
    assert_consistent(policy, obs)


def test_features_are_computed_once_a_state() -> None:
    policy, obs = make_policy(ACTIONS[1], IMAGE, ActorCriticCnnPolicy), observe(IMAGE)
    rows: list[int] = []
    policy.features_extractor.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    actions, *_ = sample_actions(policy, obs, N)
    evaluate_actions(policy, obs, actions, N)
    assert rows == [B, B]
