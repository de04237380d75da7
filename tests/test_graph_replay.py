"""Recorded graphs: replayed they give the same numbers, and where that cannot be they are not used."""

import contextlib
import copy
import functools
import gc
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_hybrid_grpo import graph_replay
from sb3_hybrid_grpo.graph_replay import GraphReplay, graph_key

VECTOR = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 1)


def counted(function: Callable[..., Any]) -> tuple[GraphReplay, list[int]]:
    """A replay, and a list that grows with every call of the function itself."""
    calls: list[int] = []

    def called(*tensors: th.Tensor) -> Any:
        calls.append(1)
        return function(*tensors)

    return GraphReplay(called), calls


def test_a_function_is_called_until_it_is_recorded_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "CALLS_BEFORE_RECORDING", 3)
    replay, calls = counted(lambda rows: (rows * 2, rows.sum()))
    for number in range(6):
        twice, total = replay(th.full((2,), float(number)))
        assert twice.tolist() == [2.0 * number] * 2 and total == 2 * number
    assert len(calls) == 4  # three, and once to record


def test_torchs_warnings_about_its_recorder_are_not_shown(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trace: Any = th.jit.trace

    def deprecated(*args: Any, **kwargs: Any) -> Any:
        warnings.warn("deprecated", FutureWarning, stacklevel=2)
        return trace(*args, **kwargs)

    monkeypatch.setattr(th.jit, "trace", deprecated)
    replay, calls = counted(lambda rows: (rows * 17.5,))  # graphs are traced once, so its code must be new
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [replay(th.ones(3))[0].tolist() for _ in range(3)] == [[17.5] * 3] * 3
    assert len(calls) == 2


def test_each_shape_and_type_has_a_graph_of_its_own(at_once: None) -> None:
    replay, calls = counted(lambda rows: (rows.float() * len(rows),))
    for _ in range(3):
        for rows in (th.ones(3), th.ones(3, dtype=th.float64), th.ones(4), th.ones(3, 1)):
            (result,) = replay(rows)
            assert result.dtype == th.float32 and th.equal(result, th.full(rows.shape, float(len(rows))))
    assert len(calls) == 2 * 4


def test_gradients_and_random_numbers_are_the_functions_own(at_once: None) -> None:
    layer = th.nn.Linear(3, 2)

    def function(rows: th.Tensor) -> tuple[th.Tensor, ...]:
        noise = th.distributions.Normal(layer(rows), 1.0).rsample()
        return (noise, *th.autograd.grad(noise.square().sum(), list(layer.parameters())))

    replay, calls = counted(function)
    for number in range(4):
        rows = th.randn(5, 3)
        with th.no_grad():
            layer.weight.add_(0.1)  # parameters may change in place
        random_state = th.get_rng_state()
        expected = function(rows)
        state_after = th.get_rng_state()
        th.set_rng_state(random_state)
        results = replay(rows)
        assert all(th.equal(one, other) for one, other in zip(results, expected, strict=True)), number
        assert th.equal(th.get_rng_state(), state_after)
        assert not any(one.requires_grad for one in results) or len(calls) == 2
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["at once", "half way", "other numbers"])
def test_what_cannot_be_recorded_goes_on_and_says_so_once(how: str, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any) -> Any:
        def traced(*tensors: th.Tensor) -> Any:
            if how == "at once":
                raise RuntimeError("no recorder here")
            graph = make_fx(function)(*tensors)
            if how == "half way":
                th.rand(3)
                raise RuntimeError("no recorder here")
            return make_fx(lambda *args: tuple(one + 1e-6 for one in graph(*args)))(*tensors)

        return traced

    monkeypatch.setattr(graph_replay, "make_fx", refuse)
    replay, calls = counted(lambda rows: (rows + th.rand(3),))
    random_state = th.get_rng_state()
    with pytest.warns(
        UserWarning, match=r"cannot be replayed.*slower: (no recorder here|a replay gives other numbers)"
    ) as said:
        results = [replay(th.ones(3))[0] for _ in range(4)]
    assert len(said) == 1
    assert len(calls) >= 4
    th.set_rng_state(random_state)
    assert all(th.equal(result, 1 + th.rand(3)) for result in results)  # as if it had not been tried
    assert th.distributions.Distribution._validate_args is True


def test_a_function_that_decides_by_numbers_is_found_out_or_not_recorded(at_once: None) -> None:
    replay = GraphReplay(lambda rows: (rows * 2 if rows.sum() > 0 else rows,))
    with pytest.warns(UserWarning, match="cannot be replayed"):
        replay(th.ones(2))
    assert th.equal(replay(-th.ones(2))[0], -th.ones(2))


@pytest.mark.filterwarnings("error")
def test_recording_says_nothing_and_changes_nothing_of_torch(at_once: None) -> None:
    replay = GraphReplay(lambda rows: (th.distributions.Normal(rows, 1.0).log_prob(rows),))  # type: ignore[no-untyped-call]
    for _ in range(3):
        replay(th.ones(2))
    with pytest.raises(ValueError, match="invalid values"):
        th.distributions.Normal(th.tensor([0.0]), th.tensor([-1.0]))


@pytest.mark.parametrize("validates", [True, False])
def test_whether_distributions_validate_stays_as_the_user_has_set_it(validates: bool, at_once: None) -> None:
    th.distributions.Distribution.set_default_validate_args(validates)
    try:
        GraphReplay(lambda rows: (rows * 2,))(th.ones(2))
        with pytest.raises(ValueError) if validates else contextlib.nullcontext():
            th.distributions.Normal(th.tensor([0.0]), th.tensor([-1.0]))
    finally:
        th.distributions.Distribution.set_default_validate_args(True)


def test_threads_record_one_after_the_other(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def slow(function: Any) -> Any:
        def trace(*tensors: th.Tensor) -> Any:
            at_work.append(1)
            time.sleep(0.02)
            most.append(len(at_work))
            at_work.pop()
            return make_fx(function)(*tensors)

        return trace

    monkeypatch.setattr(graph_replay, "make_fx", slow)
    replays = [counted(lambda rows: (rows * 2,)) for _ in range(4)]
    threads = [threading.Thread(target=replay, args=(th.ones(3),)) for replay, _ in replays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    for replay, calls in replays:
        assert replay(th.ones(3))[0].tolist() == [2.0] * 3 and len(calls) == 2


def test_parameters_are_freed_with_the_last_user_of_their_graph(at_once: None) -> None:
    def product(layers: list[Any]) -> Callable[..., Any]:
        return lambda rows: (functools.reduce(th.mm, layers, rows),)

    def record() -> weakref.ref[th.Tensor]:
        layers = [th.nn.Parameter(th.randn(4, 4)) for _ in range(5)]
        replay, calls = counted(product(layers))
        for _ in range(3):
            replay(th.ones(3, 4))
        assert len(calls) == 2
        return weakref.ref(layers[0])

    gone = record()
    gc.collect()
    assert gone() is None


def test_threads_that_record_do_not_disturb_one_that_computes(at_once: None) -> None:
    """Torch records by patching itself."""
    layers = th.nn.Sequential(th.nn.Linear(3, 5), th.nn.Tanh(), th.nn.Linear(5, 1))

    def gradient(rows: th.Tensor) -> tuple[th.Tensor, ...]:
        return th.autograd.grad(layers(rows).square().sum(), list(layers.parameters()))

    def record() -> None:
        replay = GraphReplay(gradient)
        for number in range(1, 12):
            rows = th.ones(number, 3)
            results.extend(zip(*(replay(rows) for _ in range(2)), strict=True))

    results: list[tuple[th.Tensor, th.Tensor]] = []
    rows = th.randn(4, 3)
    expected = gradient(rows)
    threads = [threading.Thread(target=record) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert all(th.equal(one, other) for one, other in zip(gradient(rows), expected, strict=True))
    assert len(results) == 2 * 11 * 4 and all(th.equal(one, other) for one, other in results)


def policy(**kwargs: Any) -> ActorCriticPolicy:
    return ActorCriticPolicy(VECTOR, spaces.Discrete(2), lambda _: 1e-3, **kwargs)


class OwnPolicy(ActorCriticPolicy):
    """A policy that may do anything."""


class OwnTanh(th.nn.Tanh):
    """A network that may do anything."""


def test_policies_of_sb3_can_be_replayed() -> None:
    assert graph_key(policy(), VECTOR)
    assert graph_key(policy(net_arch=[8], activation_fn=th.nn.ReLU, share_features_extractor=False), VECTOR)


@pytest.mark.parametrize(
    "one",
    [
        OwnPolicy(VECTOR, spaces.Discrete(2), lambda _: 1e-3),
        policy(activation_fn=OwnTanh),
        policy(activation_fn=th.nn.Dropout),
        ActorCriticPolicy(VECTOR, VECTOR, lambda _: 1e-3, use_sde=True),
    ],
    ids=["policy", "network", "random", "gSDE"],
)
def test_what_may_do_something_else_each_time_cannot(one: Any) -> None:
    assert not graph_key(one, VECTOR)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(2),
        spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)}),
    ],
    ids=str,
)
def test_nor_can_observations_that_are_encoded_by_their_numbers(space: Any) -> None:
    assert not graph_key(policy(), space)


def _on(device: str) -> Any:
    one = policy()
    one.to(device)
    return one


@pytest.mark.parametrize(
    "add",
    [
        lambda one: one.value_net.register_forward_hook(lambda *_: None),
        lambda one: one.value_net.register_forward_pre_hook(lambda *_: None),
        lambda one: one.register_full_backward_hook(lambda *_: None),
        lambda one: one.action_net.weight.register_hook(lambda gradient: gradient * 2),
        lambda one: one.action_net.weight.register_post_accumulate_grad_hook(lambda _: None),
    ],
)
def test_hooks_of_a_user_are_seen(add: Any) -> None:
    one = policy()
    handle = add(one)
    assert not graph_key(one, VECTOR)
    handle.remove()
    assert graph_key(one, VECTOR)


def test_other_devices_are_left_to_ppo() -> None:
    assert not graph_key(_on("meta"), VECTOR)


def test_a_copy_of_a_policy_can_be_replayed_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graph_key(copy.deepcopy(policy()), VECTOR)
