"""What PPO's users have: policies and options. The page docs/hybrid_grpo.md names the test of every tick."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import nn

from sb3_hybrid_grpo import HybridGRPO
from tests.test_hybrid_grpo import SMALL, changed, recorded
from tests.toy_envs import NoisyWalk, walk

HORIZONS: list[Any] = [1, 8]


class Extractor(BaseFeaturesExtractor):
    """Features of one layer, with what behaves otherwise in a training."""

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 8) -> None:
        super().__init__(observation_space, features_dim)
        width = int(np.prod(observation_space.shape or ()))
        self.layers = nn.Sequential(nn.Linear(width, features_dim), nn.BatchNorm1d(features_dim), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(observations)
        return features


class Forward(ActorCriticPolicy):
    """Acts and evaluates in its own way: another value in both."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 1.0, log_prob

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values + 1.0, log_prob, entropy

    def predict_values(self, obs: Any) -> th.Tensor:
        return super().predict_values(obs) + 1.0


class Built(ActorCriticPolicy):
    """Builds networks of its own."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        head = nn.Sequential(nn.Linear(self.mlp_extractor.latent_dim_vf, 4), nn.ELU(), nn.Linear(4, 1))
        self.value_net = head  # type: ignore[assignment]
        self.optimizer = th.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(self.features_dim, net_arch=[6], activation_fn=nn.SiLU, device=self.device)


POLICIES: list[tuple[Any, dict[str, Any]]] = [
    ("MlpPolicy", {"net_arch": [8], "activation_fn": nn.ReLU, "ortho_init": False, "log_std_init": -1.0}),
    (
        "MlpPolicy",
        {"net_arch": {"pi": [4], "vf": [8, 8]}, "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    ),
    ("MlpPolicy", {"features_extractor_class": Extractor, "features_extractor_kwargs": {"features_dim": 5}}),
    ("MlpPolicy", {"features_extractor_class": Extractor, "share_features_extractor": False}),
    (Forward, {}),
    (Built, {}),
]


@pytest.mark.parametrize(("policy", "kwargs"), POLICIES)
@pytest.mark.parametrize("horizon", HORIZONS)
def test_policies_of_ones_own_train(policy: Any, kwargs: dict[str, Any], horizon: Any) -> None:
    env = make_vec_env(walk, n_envs=2, env_kwargs={"max_steps": 9})
    assert changed(HybridGRPO(policy, env, branch_horizon=horizon, policy_kwargs=kwargs, **SMALL), 128)


@pytest.mark.parametrize(("policy", "kwargs"), POLICIES)
def test_with_one_member_they_are_what_they_are_to_ppo(policy: Any, kwargs: dict[str, Any]) -> None:
    def trained(algorithm: Any, **more: Any) -> list[th.Tensor]:
        env = make_vec_env(walk, n_envs=2, env_kwargs={"max_steps": 9})
        model = algorithm(policy, env, policy_kwargs=kwargs, **SMALL, **more).learn(256)
        return [one.detach() for one in model.policy.parameters()]

    for ours, theirs in zip(trained(HybridGRPO, n_samples=1), trained(PPO), strict=True):
        assert th.equal(ours, theirs)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_dropout_and_batch_norm_are_at_work_in_the_loss_alone(horizon: Any) -> None:
    model = HybridGRPO(
        "MlpPolicy", walk(), branch_horizon=horizon, policy_kwargs={"features_extractor_class": Extractor}, **SMALL
    )
    modes: list[tuple[bool, bool]] = []
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Extractor)
    extractor.register_forward_hook(lambda module, *_: modes.append((module.training, th.is_grad_enabled())))
    norm: Any = extractor.layers[1]
    before = norm.running_mean.clone()
    model.learn(64)
    assert set(modes) == {(False, False), (True, True)}
    assert not th.equal(norm.running_mean, before)
    obs = np.ones(2, dtype=np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert not model.policy.training


def test_batch_norm_learns_nothing_from_acting() -> None:
    model = HybridGRPO("MlpPolicy", walk(), policy_kwargs={"features_extractor_class": Extractor}, **SMALL)
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Extractor)
    norm: Any = extractor.layers[1]
    before = norm.running_mean.clone()
    model.learn(128, callback=lambda names, _: names["self"].num_timesteps < 48)
    assert model.num_timesteps == 48 and th.equal(norm.running_mean, before)


@pytest.mark.parametrize("frequency", [-1, 4])
def test_gsde_tries_distinct_actions_in_a_state(frequency: int) -> None:
    env = make_vec_env(walk, n_envs=2)
    model = HybridGRPO("MlpPolicy", env, branch_horizon=1, use_sde=True, sde_sample_freq=frequency, **SMALL).learn(128)
    of_a_state = model.rollout_buffer.actions.reshape(4, 2, 16, 2)  # members, envs, steps
    for one in range(4):
        for other in range(one):
            assert (of_a_state[one] != of_a_state[other]).any(axis=-1).all()


def test_squashed_actions_are_within_bounds_and_unscaled() -> None:
    space = spaces.Box(np.array([-3.0, 5.0], dtype=np.float32), np.array([-2.0, 9.0], dtype=np.float32))
    taken: list[np.ndarray] = []

    class Bounded(NoisyWalk):
        def step(self, action: Any) -> Any:
            taken.append(np.asarray(action))
            return super().step(np.zeros(2))

    squashed = {"squash_output": True, "log_std_init": 1.0}
    # unchecked: the list is state outside of the env, for which siblings would be forks, whose actions are not seen here
    model = HybridGRPO("MlpPolicy", Bounded(space), use_sde=True, policy_kwargs=squashed, branching_check=False, **SMALL)
    model.learn(64)
    actions = np.array(taken)
    assert len(actions) >= 64 and all(space.contains(action) for action in actions)
    middle = (space.low + space.high) / 2
    assert (actions > middle).any(axis=0).all() and (actions < middle).any(axis=0).all()


def test_schedules_follow_the_progress() -> None:
    options: dict[str, Any] = {
        "learning_rate": lambda progress: 1e-3 * progress,
        "clip_range": lambda progress: 0.2 * progress,
        "clip_range_vf": lambda progress: 0.4 * progress,
    }
    model = HybridGRPO("MlpPolicy", make_vec_env(walk, n_envs=2), **SMALL, **options)
    *_, table = recorded(model, 4 * 128, callback=lambda names, _: names["self"].num_timesteps < 4 * 128)
    # the last log is that of the third of four rollouts, and has the update before it, at half of the way
    names = ("learning_rate", "clip_range", "clip_range_vf")
    assert [table[f"train/{name}"] for name in names] == pytest.approx([5e-4, 0.1, 0.2])


def test_target_kl_ends_an_update_early() -> None:
    def epochs(target_kl: float | None) -> int:
        model = HybridGRPO("MlpPolicy", walk(), target_kl=target_kl, learning_rate=0.05, **{**SMALL, "n_epochs": 5})
        return int(recorded(model, 128)[-1]["train/n_updates"])

    assert epochs(None) == 5
    assert 0 < epochs(1e-3) < 5


def test_the_window_of_statistics() -> None:
    model = HybridGRPO("MlpPolicy", walk(max_steps=2, bound=99), stats_window_size=3, **SMALL).learn(64)
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) == model.ep_info_buffer.maxlen == 3


@pytest.mark.parametrize("n_samples", [1, 4])
def test_spaces_that_sb3_refuses_are_refused(n_samples: int) -> None:
    box = spaces.Box(-1, 1, (2,), dtype=np.float32)
    nested = spaces.Dict({"a": spaces.Dict({"b": box})})
    with pytest.raises(NotImplementedError, match="Nested observation spaces are not supported"):
        HybridGRPO("MultiInputPolicy", NoisyWalk(observation_space=nested), n_samples=n_samples, **SMALL)
    for space in (spaces.Dict({"a": box}), spaces.Tuple([box])):
        with pytest.raises(AssertionError, match="The algorithm only supports"):
            HybridGRPO("MlpPolicy", NoisyWalk(action_space=space), n_samples=n_samples, **SMALL)


def test_every_tick_in_the_docs_names_a_test_that_exists() -> None:
    folder = Path(__file__).parent
    page = (folder.parent / "docs" / "hybrid_grpo.md").read_text(encoding="utf-8")
    table = page.split("## Can I use?")[1].split("\n## ")[0]
    ticked = [line for line in table.splitlines() if "✔️" in line]
    assert len(ticked) > 20
    for line in ticked:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", line)
        assert named, f"no test is named: {line}"
        for module, test in named:
            assert f"def {test}(" in (folder / f"{module}.py").read_text(encoding="utf-8"), f"no such test: {line}"
