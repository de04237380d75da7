"""The update replays recorded gradients, and makes Adam's steps in few calls: nothing comes out otherwise."""

import copy
import functools
import gc
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_hybrid_grpo import HybridGRPO, recording
from sb3_hybrid_grpo.adam import steps_of
from sb3_hybrid_grpo.maskable import MaskableHybridGRPO
from tests.test_parity_with_ppo import assert_equal, parameters
from tests.toy_envs import NoisyWalk

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 0, "device": "cpu"}
NEVER = 10**9
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)


class MaskedWalk(NoisyWalk):
    def action_masks(self) -> np.ndarray:
        return np.array([True, self.place[0] > 0, True])


def walk_in(
    actions: spaces.Space[Any] | None = None, observations: spaces.Space[Any] | None = None
) -> Callable[[], NoisyWalk]:
    return lambda: NoisyWalk(actions, observations)


def build(env: Any = NoisyWalk, policy: Any = "MlpPolicy", algorithm: Any = HybridGRPO, **kwargs: Any) -> Any:
    options = {**SMALL, **({} if algorithm is PPO else {"n_samples": 1}), **kwargs}
    return algorithm(policy, make_vec_env(env, n_envs=2), **options)


def trained(monkeypatch: pytest.MonkeyPatch, calls: int, *args: Any, **kwargs: Any) -> Any:
    """
    :param calls: After how many minibatches to record
    """
    monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", calls)
    model = build(*args, **kwargs)
    model.learn(3 * SMALL["n_steps"] * 2)
    return model


def recordings(model: Any) -> set[int]:
    """How many rows the observations have of the minibatches whose gradient is recorded."""
    recorded = model._gradient._recorded
    return set() if recorded is None else {kind[0][0][0] for kind in recorded._recordings}


def sampling_of(model: Any) -> dict[Any, Any]:
    """Recordings of how it draws actions."""
    recorded = model._recorded[1]
    return {} if recorded is None else recorded._recordings


# and how many rows the observations of its minibatches have
CASES: dict[str, tuple[dict[str, Any], set[int]]] = {
    "gaussian": ({}, {16}),
    "categorical": ({"env": walk_in(spaces.Discrete(3))}, {16}),
    "several categorical": ({"env": walk_in(spaces.MultiDiscrete([2, 3]))}, {16}),
    "binary": ({"env": walk_in(spaces.MultiBinary(3))}, {16}),
    "dict": ({"env": walk_in(None, spaces.Dict(a=VECTOR, b=VECTOR)), "policy": "MultiInputPolicy"}, {16}),
    "networks": ({"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU, "ortho_init": False}}, {16}),
    "clipped values, raw advantages": ({"clip_range_vf": 0.2, "normalize_advantage": False, "ent_coef": 0.01}, {16}),
    "last minibatch smaller": ({"batch_size": 24}, {24, 16}),
    "early stops": ({"target_kl": 1e-4}, {16}),
    "groups of one state": ({"n_samples": 4, "branch_horizon": 1, "n_steps": 8}, {4}),
    "groups": ({"n_samples": 4, "branch_horizon": 4, "n_steps": 8}, {16}),
    "no critic": ({"n_samples": 4, "branch_horizon": 1, "n_steps": 8, "advantage_estimator": "grpo"}, {4}),
    "tempered": ({"n_samples": 4, "branch_horizon": 1, "n_steps": 8, "sampling_temperature": 1.5}, {4}),
    "masks": ({"env": lambda: MaskedWalk(spaces.Discrete(3)), "algorithm": MaskableHybridGRPO}, {16}),
}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("options", "sizes"), CASES.values(), ids=CASES)
def test_a_replayed_update_is_the_plain_one_to_the_last_bit(
    options: dict[str, Any], sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed, plain = trained(monkeypatch, 1, **options), trained(monkeypatch, NEVER, **options)
    assert recordings(replayed) == sizes
    array = isinstance(replayed.observation_space, spaces.Box)
    assert bool(sampling_of(replayed)) == (array and options.get("algorithm") is None)
    assert not recordings(plain) and not sampling_of(plain)
    assert_equal(parameters(replayed), parameters(plain))
    for one, other in zip(replayed.policy.parameters(), plain.policy.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or th.equal(one.grad, other.grad)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_a_replayed_update_is_ppos(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = trained(monkeypatch, 1, env)
    assert recordings(replayed)
    assert sampling_of(replayed)
    assert_equal(parameters(replayed), parameters(trained(monkeypatch, NEVER, env, algorithm=PPO)))


def test_what_is_logged_is_ppos(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trained(monkeypatch, 1, "CartPole-v1", n_epochs=1).logger.name_to_value
    theirs = trained(monkeypatch, NEVER, "CartPole-v1", n_epochs=1, algorithm=PPO).logger.name_to_value
    for name in ("value_loss", "approx_kl", "clip_fraction", "policy_gradient_loss", "entropy_loss", "explained_variance"):
        assert ours[f"train/{name}"] == pytest.approx(theirs[f"train/{name}"], rel=1e-5, abs=1e-7), name


def test_records_only_what_comes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    minibatches = 2 * SMALL["n_epochs"] * SMALL["n_steps"] * 2 // SMALL["batch_size"]
    assert not recordings(trained(monkeypatch, minibatches + 1))
    assert recordings(trained(monkeypatch, minibatches))  # of all updates but the first, which might be one of a schedule


class OwnNetwork(th.nn.Tanh):
    """A network that may do anything."""


class OwnPolicy(ActorCriticPolicy):
    """A policy that may do anything."""


@pytest.mark.parametrize(
    "options",
    [
        {"policy": OwnPolicy},
        {"policy_kwargs": {"activation_fn": OwnNetwork}},
        {"policy_kwargs": {"activation_fn": th.nn.Dropout}},
        {"use_sde": True},
        {"env": walk_in(None, spaces.Discrete(4))},
        {"env": walk_in(None, IMAGE), "policy": "CnnPolicy"},
        {"ent_coef": "auto"},
    ],
    ids=["policy", "network", "random", "gSDE", "encoded", "images", "learned coefficient"],
)
def test_what_may_do_something_else_each_time_is_not_recorded(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(monkeypatch, 1, **options)
    assert not recordings(model)
    assert not sampling_of(model) or "ent_coef" in options


def test_hooks_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", 1)
    model, calls = build(), []
    model.learn(128)
    assert recordings(model)
    model.policy.value_net.register_forward_hook(lambda *_: calls.append(1))
    model.learn(64, reset_num_timesteps=False)
    assert not recordings(model)
    assert len(calls) >= SMALL["n_epochs"] * 4 + SMALL["n_steps"]


def test_a_loss_that_changes_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(calls: int) -> Any:
        model = trained(monkeypatch, calls)
        model.vf_coef = 0.1
        model.policy.action_net.requires_grad_(False)
        model.learn(192, reset_num_timesteps=False)
        assert bool(recordings(model)) == (calls == 1)
        return model

    assert_equal(parameters(changed(1)), parameters(changed(NEVER)))


class Copies(BaseCallback):
    """Copies the policy at every step, as it can be with PPO."""

    def _on_step(self) -> bool:
        copy.deepcopy(self.model.policy)
        return True


def test_a_copy_of_a_model_trains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(monkeypatch, 1)
    model.learn(64, reset_num_timesteps=False, callback=Copies())
    model.predict(np.zeros(2))  # what is left of an update cannot be copied, with PPO neither
    before, twin = parameters(model), copy.deepcopy(model)
    twin.learn(64, reset_num_timesteps=False)
    assert_equal(parameters(model), before)
    assert any((one != other).any() for one, other in zip(parameters(twin), before, strict=True))


def test_a_saved_model_goes_on_as_if_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(monkeypatch, 1)
    model.save(tmp_path / "model")
    loaded = HybridGRPO.load(tmp_path / "model", env=make_vec_env(NoisyWalk, n_envs=2))
    assert_equal(parameters(loaded), parameters(model))
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn(64, reset_num_timesteps=True)
    assert_equal(parameters(loaded), parameters(model))


@pytest.mark.parametrize("where", ["at once", "half way", "other numbers"])
def test_what_cannot_be_recorded_goes_on_and_says_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = make_fx

    def refuse(function: Any) -> Any:
        def traced(*tensors: th.Tensor) -> Any:
            if where != "at once":
                graph = real(function)(*tensors)
            if where == "other numbers":
                return real(lambda *args: tuple(one + 1e-6 for one in graph(*args)))(*tensors)
            raise RuntimeError("no recorder here")

        return traced

    with monkeypatch.context() as patch:
        patch.setattr(recording, "make_fx", refuse)
        with pytest.warns(UserWarning, match="cannot be recorded.*(no recorder here|other numbers)"):
            model = trained(monkeypatch, 1)
    assert not recordings(model) and not sampling_of(model)
    assert_equal(parameters(model), parameters(trained(monkeypatch, NEVER)))


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"fused": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", [th.optim.Adam, th.optim.AdamW, th.optim.SGD])
def test_steps_are_the_optimisers_own(kind: Any, options: dict[str, Any]) -> None:
    if kind is th.optim.SGD and options.keys() - {"weight_decay"}:
        return
    weights = [th.nn.Parameter(th.randn(shape)) for shape in [(3, 5), (7,), (1,), (2, 1, 4)]]
    ours, theirs = copy.deepcopy(weights), copy.deepcopy(weights)
    one, other = kind(ours, lr=1e-2, **options), kind(theirs, lr=1e-2, **options)
    for _ in range(3):
        with steps_of(one, same_parameters=True) as step:
            for _ in range(4):
                for mine, its in zip(ours[:-1], theirs[:-1], strict=True):  # the last one has no gradient
                    mine.grad = its.grad = th.randn(mine.shape)
                step()
                other.step()
        assert_equal([w.detach().numpy() for w in ours], [w.detach().numpy() for w in theirs])
        assert one.state_dict().keys() == other.state_dict().keys()
        for mine, its in zip(one.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
            assert mine.keys() == its.keys()
            assert all(mine[key] is its[key] is None or th.equal(mine[key], its[key]) for key in mine)


def test_a_parameter_that_is_unfrozen_makes_its_own_steps() -> None:
    def thawed(plain: bool) -> Any:
        model = build(n_epochs=2)
        model.policy.log_std.requires_grad = False
        model.learn(64)
        model.policy.log_std.requires_grad = True
        if plain:  # with a hook, Adam steps by itself
            model.policy.optimizer.register_step_post_hook(lambda *_: None)
        return model.learn(64, reset_num_timesteps=False)

    mine, its = thawed(plain=False), thawed(plain=True)
    assert_equal(parameters(mine), parameters(its))
    steps = {float(state["step"]) for state in mine.policy.optimizer.state.values()}
    assert len(steps) == 2


def test_observations_of_another_type_are_no_recording_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", 1)
    drawn = recording.Recorded(lambda obs: (obs.float() * 2,))
    for dtype in (th.float32, th.float64, th.float32):
        (twice,) = drawn(th.ones(3, dtype=dtype))
        assert twice.dtype == th.float32 and twice.tolist() == [2.0] * 3
    assert len(drawn._recordings) == 2


@pytest.mark.parametrize("schedule", [{"clip_range": lambda left: 0.2 * left + 0.01}, {"ent_coef": "lin_0.01"}])
def test_a_loss_that_changes_with_every_update_is_not_recorded(
    schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recordings(trained(monkeypatch, 1, **schedule)) == set()


class LeavesGradients(BaseCallback):
    def _on_rollout_end(self) -> None:
        observation = th.zeros(1, 2)
        self.model.policy.predict_values(observation).sum().backward()  # type: ignore[operator]

    def _on_step(self) -> bool:
        return True


def test_gradients_that_others_leave_are_not_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(calls: int) -> list[np.ndarray]:
        monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", calls)
        model = build(n_samples=4, branch_horizon=1, n_steps=8, advantage_estimator="grpo")
        model.learn(64, callback=LeavesGradients())
        return parameters(model)

    assert_equal(run(1), run(NEVER))


def test_a_module_put_in_place_of_another_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(calls: int) -> list[np.ndarray]:
        model = trained(monkeypatch, calls)
        model.policy.mlp_extractor.policy_net[1] = th.nn.ReLU()
        model.learn(64, reset_num_timesteps=False)
        return parameters(model)

    assert_equal(run(1), run(NEVER))


class SwapsPolicies(BaseCallback):
    def _on_step(self) -> bool:
        if self.n_calls == 40:
            self.model.policy = copy.deepcopy(self.model.policy)
            with th.no_grad():
                self.model.policy.value_net.bias += 5.0  # type: ignore[union-attr,operator]
        return True


def test_another_policy_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(calls: int) -> list[np.ndarray]:
        monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", calls)
        model = build(n_steps=32)
        model.learn(64, callback=SwapsPolicies())
        return [model.rollout_buffer.values]

    assert_equal(run(1), run(NEVER))


def test_a_model_with_recordings_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(monkeypatch, 1)
    assert recordings(model)
    assert not {"_gradient", "_gradient_read", "_recorded"} & model.__getstate__().keys()
    assert_equal(parameters(copy.deepcopy(model)), parameters(model))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_recordings_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", 1)

    def make() -> recording.Recorded:
        layers = [th.randn(4, 4) for _ in range(20)]
        return recording.Recorded(lambda rows: (functools.reduce(th.mm, layers, rows),))

    def record(number: int) -> None:
        for _ in range(number):
            recorded = make()
            recorded(th.ones(3, 4))
            assert len(recorded._recordings) == 1

    def mebibytes() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    record(60)
    before = mebibytes()
    record(40)
    assert mebibytes() - before < 4.0


def test_threads_record_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "CALLS_BEFORE_RECORDING", 1)
    at_work: list[int] = []
    most = []

    def traced(function: Any) -> Any:
        def trace(*tensors: th.Tensor) -> Any:
            at_work.append(1)
            time.sleep(0.02)
            most.append(len(at_work))
            at_work.pop()
            return make_fx(function)(*tensors)

        return trace

    monkeypatch.setattr(recording, "make_fx", traced)
    all_recorded = [recording.Recorded(lambda rows: (rows * 2,)) for _ in range(4)]
    threads = [threading.Thread(target=recorded, args=(th.ones(3),)) for recorded in all_recorded]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert [len(recorded._recordings) for recorded in all_recorded] == [1] * 4
