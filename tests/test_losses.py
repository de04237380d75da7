"""PPO's loss: numbers worked out by hand, and a literal transcription of SB3's code."""

import math
import runpy
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sb3_hybrid_grpo.losses import Coefficients, Statistics, ppo_loss

NO_CHANGE = th.zeros(2)


def statistics_of(
    log_ratio: th.Tensor = NO_CHANGE,
    advantages: th.Tensor = NO_CHANGE,
    values: th.Tensor = NO_CHANGE,
    old_values: th.Tensor = NO_CHANGE,
    returns: th.Tensor = NO_CHANGE,
    entropy: th.Tensor | None = NO_CHANGE,
    clip_range_vf: float | None = None,
    normalize: bool = False,
    coefficients: tuple[float, float, float] = (0.2, 0.0, 0.0),
) -> Statistics:
    """
    :param coefficients: clip_range, ent_coef and vf_coef
    """
    clip_range, ent_coef, vf_coef = coefficients
    loss, stacked = ppo_loss(
        *((values[:, None], log_ratio - 1.0, entropy), old_values, th.full_like(log_ratio, -1.0), advantages, returns),
        Coefficients.of(clip_range, clip_range_vf or 0.0, ent_coef, vf_coef),
        clip_range_vf is not None,
        normalize,
    )
    statistics = Statistics(*stacked)
    assert th.equal(loss, statistics.loss)
    return statistics


def test_policy_loss_literal() -> None:
    # clip_range 0.2. A = 1, ratio 1.5: min(1.5, 1.2) = 1.2. A = 1, ratio 0.5: min(0.5, 0.8) = 0.5
    # A = -2, ratio 1.5: min(-3, -2.4) = -3. A = -2, ratio 0.5: min(-1, -1.6) = -1.6. Loss = -(1.2 + 0.5 - 3 - 1.6) / 4
    log_ratio = th.log(th.tensor([1.5, 0.5, 1.5, 0.5]))
    numbers = th.zeros(4)
    one = statistics_of(log_ratio, th.tensor([1.0, 1.0, -2.0, -2.0]), numbers, numbers, numbers, numbers)
    assert one.policy_gradient_loss.item() == pytest.approx(2.9 / 4)
    assert one.clip_fraction.item() == 1.0


def test_policy_loss_has_no_gradient_where_the_clip_binds() -> None:
    # by the log ratio the gradient is -A * ratio / 4 where the unclipped term is the smaller one, and 0 elsewhere
    log_ratio = th.log(th.tensor([1.5, 0.5, 1.5, 0.5])).requires_grad_()
    numbers = th.zeros(4)
    coefficients = Coefficients.of(0.2, 0.0, 0.0, 0.0)
    evaluated = (numbers[:, None], log_ratio, numbers)
    old = (numbers, numbers, th.tensor([1.0, 1.0, -2.0, -2.0]), numbers)
    loss, _ = ppo_loss(evaluated, *old, coefficients, False, False)
    (gradient,) = th.autograd.grad(loss, log_ratio)
    assert gradient.tolist() == pytest.approx([0.0, -0.125, 0.75, 0.0])


def test_value_loss_literal() -> None:
    values, old_values, returns = th.tensor([1.0, 5.0]), th.tensor([0.0, 5.5]), th.tensor([3.0, 6.0])
    # (3 - 1)^2 and (6 - 5)^2
    assert statistics_of(values=values, old_values=old_values, returns=returns).value_loss.item() == pytest.approx(2.5)
    # 1 is held to 0 + 0.5; 5 is 5.5 - 0.5, just inside: (3 - 0.5)^2 and 1
    clipped = statistics_of(values=values, old_values=old_values, returns=returns, clip_range_vf=0.5)
    assert clipped.value_loss.item() == pytest.approx((6.25 + 1) / 2)


def test_entropy_literal() -> None:
    assert statistics_of(entropy=th.tensor([0.5, 1.5])).entropy_loss.item() == -1.0
    # without an entropy, minus the mean log-probability stands in for it: the old ones are -1
    assert statistics_of(th.tensor([0.5, -2.5]), entropy=None).entropy_loss.item() == -2.0


def test_loss_literal() -> None:
    # -(1 + 3) / 2 + 0.1 * -1 + 0.5 * 2.5
    loss = statistics_of(
        advantages=th.tensor([1.0, 3.0]),
        values=th.tensor([1.0, 5.0]),
        returns=th.tensor([3.0, 6.0]),
        entropy=th.tensor([0.5, 1.5]),
        coefficients=(0.2, 0.1, 0.5),
    ).loss
    assert loss.item() == pytest.approx(-2 - 0.1 + 1.25)


def test_kl_and_clip_fraction_literal() -> None:
    # log ratio ln 2: 2 - 1 - ln 2; log ratio -ln 2: 0.5 - 1 + ln 2. The logarithms cancel: (1 - 0.5) / 2
    one = statistics_of(th.tensor([math.log(2), -math.log(2)]))
    assert one.approx_kl.item() == pytest.approx(0.25)
    # of the ratios 2 and 0.5 one is farther than 0.75 from 1
    assert statistics_of(th.log(th.tensor([2.0, 0.5])), coefficients=(0.75, 0, 0)).clip_fraction.item() == 0.5
    assert statistics_of().approx_kl.item() == statistics_of().clip_fraction.item() == 0.0


@pytest.mark.parametrize(("advantages", "expected"), [([1.0, 2.0, 3.0], [-1, 0, 1]), ([7.0], [7])])
def test_advantages_are_normalised_literal(advantages: list[float], expected: list[float]) -> None:
    # mean 2; the sample standard deviation divides by n - 1: sqrt((1 + 0 + 1) / 2) = 1. A single one has none
    log_ratio = th.zeros(len(advantages), requires_grad=True)
    numbers = th.zeros(len(advantages))
    evaluated = (numbers[:, None], log_ratio, numbers)
    old = (numbers, numbers, th.tensor(advantages), numbers)
    loss, _ = ppo_loss(evaluated, *old, Coefficients.of(0.2, 0, 0, 0), False, True)
    (gradient,) = th.autograd.grad(loss, log_ratio)
    assert (-gradient * len(advantages)).tolist() == pytest.approx(expected)


def sb3_loss(
    policy: Any, values: Any, data: dict[str, th.Tensor], clip_range: float, clip_range_vf: float | None, options: Any
) -> Any:
    """The lines of ``PPO.train`` of Stable-Baselines3 2.9."""
    log_prob, entropy = policy
    values = values.flatten()
    advantages = data["advantages"]
    if options["normalize_advantage"] and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = th.exp(log_prob - data["old_log_prob"])
    policy_loss_1 = advantages * ratio
    policy_loss_2 = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    policy_loss = -th.min(policy_loss_1, policy_loss_2).mean()
    clip_fraction = th.mean((th.abs(ratio - 1) > clip_range).float()).item()
    if clip_range_vf is None:
        values_pred = values
    else:
        values_pred = data["old_values"] + th.clamp(values - data["old_values"], -clip_range_vf, clip_range_vf)
    value_loss = F.mse_loss(data["returns"], values_pred)
    entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)
    loss = policy_loss + options["ent_coef"] * entropy_loss + options["vf_coef"] * value_loss
    with th.no_grad():
        log_ratio = log_prob - data["old_log_prob"]
        approx_kl_div = th.mean((th.exp(log_ratio) - 1) - log_ratio).cpu().numpy()
    numbers = (policy_loss.item(), clip_fraction, value_loss.item(), entropy_loss.item(), approx_kl_div.item(), loss.item())
    return loss, numbers


@pytest.mark.parametrize("mode", [th.no_grad, th.inference_mode])
def test_it_can_be_imported_where_no_gradients_are_computed(mode: Any) -> None:
    with mode():
        runpy.run_module("sb3_hybrid_grpo.losses")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 65),
    clip_range=st.sampled_from([-0.01, 0.0, 0.01, 0.1, 0.2, 0.3, 2.0]),
    clip_range_vf=st.sampled_from([None, -0.1, 0.0, 0.1, 0.3, 1.5]),
    has_entropy=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "normalize_advantage": st.booleans(),
            "ent_coef": st.sampled_from([0.0, 0.01, 0.37]),
            "vf_coef": st.sampled_from([0.0, 0.5, 0.871923]),
        }
    ),
)
def test_loss_statistics_and_gradients_are_sb3s_to_the_last_bit(
    seed: int, n_rows: int, clip_range: float, clip_range_vf: float | None, has_entropy: bool, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)

    def numbers(*shape: int) -> th.Tensor:
        return th.as_tensor(rng.normal(size=shape), dtype=th.float32)

    data = {name: numbers(n_rows) for name in ("advantages", "returns")}
    log_prob, values, entropy = (numbers(*shape).requires_grad_() for shape in ((n_rows,), (n_rows, 1), (n_rows,)))
    # some are unchanged: on both bounds at the end of a schedule that falls to 0
    data["old_log_prob"] = log_prob.detach() + 0.3 * numbers(n_rows) * (numbers(n_rows) > 0)
    data["old_values"] = values.detach().flatten() + numbers(n_rows) * (numbers(n_rows) > 0)
    theirs, expected = sb3_loss((log_prob, entropy if has_entropy else None), values, data, clip_range, clip_range_vf, options)
    ours, statistics = ppo_loss(
        *((values, log_prob, entropy if has_entropy else None), data["old_values"], data["old_log_prob"]),
        *(data["advantages"], data["returns"]),
        Coefficients.of(clip_range, clip_range_vf or 0.0, options["ent_coef"], options["vf_coef"]),
        clip_range_vf is not None,
        options["normalize_advantage"],
    )
    assert tuple(statistics.tolist()) == expected
    inputs = [log_prob, values, entropy]
    pairs = zip(*(th.autograd.grad(loss, inputs, materialize_grads=True) for loss in (ours, theirs)), strict=True)
    for mine, its in pairs:
        assert th.equal(mine, its)
