"""Adam over one tensor in place of many: every number as torch's own Adam makes it."""

import copy
from typing import Any

import pytest
import torch as th

from sb3_hybrid_grpo.flat_adam import FlatAdam, can_be_flat, flat

SHAPES: list[tuple[int, ...]] = [(3, 5), (7,), (1,), (2, 1, 4)]


def new_weights(dtype: th.dtype = th.float32) -> list[th.nn.Parameter]:
    return [th.nn.Parameter(th.randn(shape, dtype=dtype)) for shape in SHAPES]


def state_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    states = optimizer.state_dict()["state"]
    return [moment for place in sorted(states) for _, moment in sorted(states[place].items())]


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"maximize": True}], ids=str
)
def test_steps_are_adams_own(options: dict[str, Any]) -> None:
    ours = new_weights()
    theirs = copy.deepcopy(ours)
    one, other = th.optim.Adam(ours, lr=1e-2, **options), th.optim.Adam(theirs, lr=1e-2, **options)
    addresses = [weight.data_ptr() for weight in ours]
    for update in range(4):
        for optimizer in (one, other):
            optimizer.param_groups[0]["lr"] = 1e-2 * (2 - update)  # a schedule, and beyond its end
        assert can_be_flat(one, ours)
        with FlatAdam(one, ours) as adam:
            for _ in range(3):
                gradients = [th.randn(shape) for shape in SHAPES]
                adam.step(flat(gradients))
                for weight, gradient in zip(theirs, gradients, strict=True):
                    weight.grad = gradient
                other.step()
                assert all(th.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
        assert all(th.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(th.equal(mine, its) for mine, its in zip(state_of(one), state_of(other), strict=True))
        assert all(th.equal(mine.grad, its.grad) for mine, its in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
        other.load_state_dict(copy.deepcopy(one.state_dict()))  # and each can go on from the other
    assert [weight.data_ptr() for weight in ours] == addresses


def test_parameters_lie_where_torch_would_put_them() -> None:
    """At multiples of 64 bytes; elsewhere, matrix products round otherwise."""
    weights = new_weights()
    with FlatAdam(th.optim.Adam(weights), weights):
        assert all(weight.data_ptr() % 64 == th.ones(3).data_ptr() % 64 == 0 for weight in weights)
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    assert flat([th.ones(2, 3), th.full((1,), 7.0)]).tolist() == [1.0] * 6 + [0.0] * 10 + [7.0] + [0.0] * 15


def test_parameters_without_a_gradient_are_left_alone() -> None:
    weights = new_weights()
    optimizer = th.optim.Adam(weights, lr=0.1)
    frozen = weights[1].detach().clone()
    weights[1].grad = th.ones(7)  # of somebody else
    trained = [weights[0], *weights[2:]]
    with FlatAdam(optimizer, trained) as adam:
        adam.step(flat(map(th.ones_like, trained)))
    assert th.equal(weights[1], frozen) and weights[1] not in optimizer.state and weights[1].grad is None
    assert all(optimizer.state[weight]["step"] == 1 for weight in trained)


def test_without_a_step_nothing_changes() -> None:
    weights = new_weights()
    optimizer = th.optim.Adam(weights)
    with FlatAdam(optimizer, weights):
        pass
    assert not optimizer.state_dict()["state"]


def test_what_breaks_off_an_update_leaves_the_steps_so_far() -> None:
    weights = new_weights()
    before = [weight.detach().clone() for weight in weights]
    addresses = [weight.data_ptr() for weight in weights]
    optimizer = th.optim.Adam(weights, lr=0.5)
    with pytest.raises(KeyboardInterrupt), FlatAdam(optimizer, weights) as adam:
        adam.step(flat(map(th.ones_like, weights)))
        raise KeyboardInterrupt
    for weight, old in zip(weights, before, strict=True):
        th.testing.assert_close(weight.detach(), old - 0.5)  # Adam's first step is the learning rate
    assert [weight.data_ptr() for weight in weights] == addresses
    assert len(optimizer.state) == 4


class OwnAdam(th.optim.Adam):
    """Does anything."""


def _hooked(weights: Any) -> th.optim.Optimizer:
    optimizer = th.optim.Adam(weights)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def _patched(weights: Any) -> th.optim.Optimizer:
    optimizer = th.optim.Adam(weights)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    return optimizer


def _after_different_steps(weights: Any) -> th.optim.Optimizer:
    optimizer = th.optim.Adam(weights)
    weights[0].grad = th.ones(SHAPES[0])
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "make",
    [
        th.optim.SGD,
        th.optim.AdamW,
        OwnAdam,
        lambda weights: th.optim.Adam(weights, amsgrad=True),
        lambda weights: th.optim.Adam(weights, fused=True),
        lambda weights: th.optim.Adam([{"params": weights[:1]}, {"params": weights[1:], "lr": 1e-5}]),
        lambda weights: th.optim.Adam(weights[1:]),
        _hooked,
        _patched,
        _after_different_steps,
    ],
)
def test_other_optimizers_are_not_replaced(make: Any) -> None:
    weights = new_weights()
    assert can_be_flat(th.optim.Adam(weights), weights)
    assert not can_be_flat(make(weights), weights)


def test_nor_are_other_numbers() -> None:
    weights = new_weights(th.float64)
    assert not can_be_flat(th.optim.Adam(weights), weights)
