"""The replayed update against ``PPO.train``: every parameter, every moment and every gradient, to the last bit."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo import HybridGRPO, MaskableHybridGRPO, graph_replay
from tests.test_parity_with_ppo import assert_equal, parameters
from tests.toy_envs import NoisyWalk

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 0, "device": "cpu"}
N_ENVS, N_UPDATES, NEVER = 2, 4, 10**9
VECTOR = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)


class MaskedWalk(NoisyWalk):
    """Allows an action by where it is."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, self.place[0] > 0, True])


def walk_in(actions: Any = None, observations: Any = None, env: Any = NoisyWalk) -> Callable[[], NoisyWalk]:
    return lambda: env(actions, observations)


def build(algorithm: Any = HybridGRPO, env: Any = NoisyWalk, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """A model without groups, unless they are asked for."""
    groups = {"n_samples": 1} if issubclass(algorithm, HybridGRPO | MaskableHybridGRPO) else {}
    return algorithm(policy, make_vec_env(env, n_envs=N_ENVS), **{**SMALL, **groups, **kwargs})


def trained(calls: int, *args: Any, **kwargs: Any) -> Any:
    """
    :param calls: After how many calls to record
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", calls)
        return build(*args, **kwargs).learn(N_UPDATES * SMALL["n_steps"] * N_ENVS)


def batches_recorded(model: Any) -> set[int]:
    """Rows of the minibatches whose gradient is recorded."""
    return {kind[0][0][0] for kind in model._update._gradient._recordings}


def acts_by_replay(model: Any) -> bool:
    return model._sampling is not None and bool(model._sampling._recordings)


def everything(model: Any) -> list[np.ndarray]:
    gradients = [np.empty(0) if one.grad is None else one.grad.numpy().copy() for one in model.policy.parameters()]
    return [*parameters(model), *gradients, np.array(model._n_updates)]


OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "categorical": {"env": walk_in(spaces.Discrete(3))},
    "several categorical": {"env": walk_in(spaces.MultiDiscrete([2, 3]))},
    "binary": {"env": walk_in(spaces.MultiBinary(3))},
    "dict": {"env": walk_in(None, spaces.Dict(b=VECTOR, a=VECTOR)), "policy": "MultiInputPolicy"},
    "networks": {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU, "ortho_init": False}},
    "two extractors, no layers": {"policy_kwargs": {"net_arch": {"pi": [], "vf": [4]}, "share_features_extractor": False}},
    "clipped values, raw advantages": {"clip_range_vf": 0.2, "normalize_advantage": False, "ent_coef": 0.01},
    "no critic": {"vf_coef": 0.0, "ent_coef": 0.1, "max_grad_norm": 0.01},
    "one epoch": {"n_epochs": 1},
    "one minibatch": {"batch_size": 64},
    "minibatch larger than the rollout": {"batch_size": 100},
    "last minibatch smaller": {"batch_size": 24},
    "last minibatch of one": {"batch_size": 21},
    "early stops": {"target_kl": 1e-4, "learning_rate": 3e-3},
    "stops before the first step": {"target_kl": -1.0},
    "schedules": {
        "learning_rate": lambda progress: 3e-3 * progress,
        "clip_range": lambda progress: 0.3 * progress,
        "clip_range_vf": lambda progress: 0.1 + progress,
    },
    "weight decay": {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1, "betas": (0.8, 0.9)}}},
}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replayed_update_is_ppos(options: dict[str, Any]) -> None:
    replayed = trained(1, **options)
    assert batches_recorded(replayed)
    assert acts_by_replay(replayed) == isinstance(replayed.observation_space, spaces.Box)
    assert_equal(everything(replayed), everything(trained(NEVER, PPO, **options)))


@pytest.mark.parametrize("env", ["CartPole-v1", "HalfCheetah-v5"])
def test_a_replayed_update_is_ppos_in_known_envs(env: str) -> None:
    replayed = trained(3, env=env, n_steps=64)  # recorded in the middle of an epoch
    assert batches_recorded(replayed) and acts_by_replay(replayed)
    assert_equal(everything(replayed), everything(trained(NEVER, PPO, env=env, n_steps=64)))


@pytest.mark.parametrize("use_dict", [False, True])
def test_a_replayed_update_with_masks_is_maskable_ppos(use_dict: bool) -> None:
    space = spaces.Dict(b=VECTOR, a=VECTOR) if use_dict else VECTOR
    options: dict[str, Any] = {"policy": "MultiInputPolicy" if use_dict else "MlpPolicy"}
    options |= {"env": walk_in(spaces.Discrete(3), space, MaskedWalk), "clip_range_vf": 0.5, "ent_coef": 0.01}
    replayed = trained(1, MaskableHybridGRPO, **options)
    assert batches_recorded(replayed) == {16}
    assert_equal(everything(replayed), everything(trained(NEVER, MaskablePPO, **options)))


@pytest.mark.parametrize(
    "options", [{}, {"branch_horizon": 1}, {"advantage_estimator": "grpo"}, {"advantage_estimator": "paper"}], ids=str
)
def test_with_groups_replayed_and_plain_are_the_same(options: dict[str, Any]) -> None:
    options = {"n_samples": 2, "branch_horizon": 4, **options}
    replayed, plain = trained(1, **options), trained(NEVER, **options)
    assert batches_recorded(replayed) and acts_by_replay(replayed)
    assert not batches_recorded(plain) and not acts_by_replay(plain)
    assert_equal(everything(replayed), everything(plain))


@pytest.mark.parametrize("options", [{}, {"n_epochs": 4, "target_kl": 1e-3, "clip_range_vf": 0.2}], ids=str)
def test_what_is_logged_is_ppos(options: dict[str, Any]) -> None:
    ours = trained(1, env="Pendulum-v1", **options)
    theirs = trained(NEVER, PPO, env="Pendulum-v1", **options)
    for model in (ours, theirs):
        np.random.seed(0)
        model.train()
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    assert logged.keys() == expected.keys() and len(expected) > 10
    for name, value in expected.items():  # means of other orders round otherwise
        assert logged[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_an_early_stop_is_said_as_ppo_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for algorithm in (HybridGRPO, PPO):
        build(algorithm, target_kl=1e-5, verbose=1).learn(64)
        said.append([line for line in capsys.readouterr().out.splitlines() if "Early" in line])
    assert said[0] == said[1] != []


class OwnPolicy(ActorCriticPolicy):
    """Counts how often its loss is computed."""

    calls = 0

    def evaluate_actions(self, *args: Any) -> Any:
        OwnPolicy.calls += 1
        return super().evaluate_actions(*args)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": OwnPolicy},
        {"policy_kwargs": {"activation_fn": th.nn.Dropout}},
        {"use_sde": True},
        {"env": walk_in(None, spaces.Discrete(4))},
        {"env": walk_in(None, IMAGE), "policy": "CnnPolicy"},
        {"policy_kwargs": {"optimizer_class": th.optim.AdamW}},
        {"policy_kwargs": {"optimizer_class": th.optim.SGD}},
    ],
    ids=["policy", "random", "gSDE", "encoded", "images", "AdamW", "SGD"],
)
def test_what_is_not_known_is_updated_by_ppo_itself(options: dict[str, Any]) -> None:
    model = trained(1, **options)
    assert not batches_recorded(model)
    assert_equal(everything(model), everything(trained(NEVER, PPO, **options)))


def test_a_policy_of_the_users_own_is_called_for_every_minibatch() -> None:
    OwnPolicy.calls = 0
    trained(1, policy=OwnPolicy)
    assert OwnPolicy.calls == N_UPDATES * SMALL["n_epochs"] * 64 // 16


def test_hooks_put_in_between_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 1)
    model, calls = build().learn(64), []
    handle = model.policy.value_net.register_forward_hook(lambda *_: calls.append(1))
    model.learn(64, reset_num_timesteps=False)
    assert len(calls) >= SMALL["n_epochs"] * 4 + SMALL["n_steps"]
    handle.remove()
    calls.clear()
    model.learn(64, reset_num_timesteps=False)
    assert len(calls) == 0 and batches_recorded(model)


def _freeze(model: Any) -> None:
    model.policy.action_net.requires_grad_(False)


def _other_activation(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[1] = th.nn.ReLU()


def _other_policy(model: Any) -> None:
    th.manual_seed(1)
    spaces_and_schedule = (model.observation_space, model.action_space, model.lr_schedule)
    model.policy = model.policy_class(*spaces_and_schedule, net_arch=[8])


def _other_parameter(model: Any) -> None:
    old = model.policy.value_net.bias
    model.policy.value_net.bias = th.nn.Parameter(th.ones(1))
    model.policy.optimizer.param_groups[0]["params"] = list(model.policy.parameters())
    del model.policy.optimizer.state[old]


def _other_options(model: Any) -> None:
    model.vf_coef, model.ent_coef, model.max_grad_norm, model.normalize_advantage = 0.1, 0.3, 0.05, False
    model.clip_range_vf, model.clip_range = (lambda _: 0.3), (lambda _: 0.05)


def _other_optimizer(model: Any) -> None:
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-2, eps=1e-3)


@pytest.mark.parametrize(
    "change", [_freeze, _other_activation, _other_policy, _other_parameter, _other_options, _other_optimizer]
)
def test_changes_between_updates_count(change: Any) -> None:
    def run(calls: int, algorithm: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", calls)
            model = build(algorithm).learn(128)
            change(model)
            return model.learn(192, reset_num_timesteps=False)

    ours, theirs = run(1, HybridGRPO), run(NEVER, PPO)
    # the state that Adam has of a new parameter is not that of the others
    assert bool(batches_recorded(ours)) == (change is not _other_parameter)
    assert_equal(everything(ours), everything(theirs))


def test_a_parameter_that_is_unfrozen_makes_its_own_steps() -> None:
    def thawed(algorithm: Any) -> Any:
        model = build(algorithm)
        model.policy.log_std.requires_grad = False
        model.learn(64)
        model.policy.log_std.requires_grad = True
        return model.learn(64, reset_num_timesteps=False)

    ours, theirs = thawed(HybridGRPO), thawed(PPO)
    assert_equal(everything(ours), everything(theirs))
    assert len({float(state["step"]) for state in ours.policy.optimizer.state.values()}) == 2


class LeavesGradients(BaseCallback):
    """Computes gradients of its own, as a callback may."""

    def _on_rollout_end(self) -> None:
        self.model.policy.predict_values(th.zeros(1, 2)).sum().backward()  # type: ignore[operator]

    def _on_step(self) -> bool:
        return True


def test_gradients_that_others_leave_are_not_stepped() -> None:
    def run(algorithm: Any) -> Any:
        return build(algorithm).learn(128, LeavesGradients())

    assert_equal(everything(run(HybridGRPO)), everything(run(PPO)))


class Copies(BaseCallback):
    """Copies the policy at every step."""

    def _on_step(self) -> bool:
        copy.deepcopy(self.model.policy)
        return True


def test_a_callback_may_copy_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 10)
    model = build().learn(256, Copies())
    assert batches_recorded(model) and acts_by_replay(model)


class SwapsPolicies(BaseCallback):
    """Puts another policy in the model's place in mid-rollout."""

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            self.model.policy = copy.deepcopy(self.model.policy)
            with th.no_grad():
                self.model.policy.value_net.bias += 5.0  # type: ignore[union-attr,operator]
        return True


def test_another_policy_acts_at_once_and_is_the_one_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 1)
    ours, theirs = (build(algorithm).learn(64, SwapsPolicies()) for algorithm in (HybridGRPO, PPO))
    np.testing.assert_array_equal(ours.rollout_buffer.values, theirs.rollout_buffer.values)
    assert_equal(everything(ours), everything(theirs))


def test_a_copy_of_a_model_trains_itself() -> None:
    model = trained(1)
    model.predict(np.zeros(2))  # what an update leaves in the policy cannot be copied, with PPO neither
    before, twin = parameters(model), copy.deepcopy(model)
    assert_equal(parameters(twin), before)
    twin.learn(64, reset_num_timesteps=False)
    assert_equal(parameters(model), before)
    assert any((one != other).any() for one, other in zip(parameters(twin), before, strict=False))


def test_models_in_threads_train_side_by_side(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 5)
    models = [build(n_steps=32 * number, n_epochs=1) for number in (1, 2)]
    errors: list[BaseException] = []

    def learn(model: Any) -> None:
        try:
            model.learn(3 * 2 * model.n_steps)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=learn, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for model in models:
        assert batches_recorded(model) == {16}
        assert all(np.isfinite(one).all() for one in parameters(model))


def test_everything_is_freed_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 1)
    model = build().learn(128)
    assert batches_recorded(model) and acts_by_replay(model)
    gone = [weakref.ref(one) for one in (model, model.policy, model._update, *model.policy.parameters())]
    del model
    gc.collect()
    assert [one() for one in gone] == [None] * len(gone)


def test_a_model_built_like_another_adds_no_traced_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps every traced function for good."""
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 1)
    monkeypatch.setattr(graph_replay, "_TRACED", {})
    build().learn(64)
    number = len(graph_replay._TRACED)
    assert number == 2  # acting, and the update
    build(seed=1, learning_rate=1e-2, clip_range=0.3).learn(64)
    assert len(graph_replay._TRACED) == number
    build(policy_kwargs={"activation_fn": th.nn.ReLU}).learn(64)
    assert len(graph_replay._TRACED) == 2 * number
