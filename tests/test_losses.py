"""PPO's losses: numbers worked out by hand, and values and gradients of a copy of SB3's formulas."""

import math

import pytest
import torch as th
from torch.nn import functional as F

from sb3_hybrid_grpo.losses import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    entropy_loss,
    normalize_advantages,
    value_loss,
)


def random_tensors(n_tensors: int, n_numbers: int = 64) -> list[th.Tensor]:
    generator = th.Generator().manual_seed(0)
    return list(th.randn((n_tensors, n_numbers), generator=generator))


def gradient(loss: th.Tensor, of: th.Tensor) -> th.Tensor:
    return th.autograd.grad(loss, of)[0]


# ---- clipped_surrogate


def test_surrogate_literal() -> None:
    # clip_range 0.2. A = 1, ratio 1.5: min(1.5, 1.2) = 1.2. A = 1, ratio 0.5: min(0.5, 0.8) = 0.5
    # A = -2, ratio 1.5: min(-3, -2.4) = -3. A = -2, ratio 0.5: min(-1, -1.6) = -1.6. Loss = -(1.2 + 0.5 - 3 - 1.6) / 4
    loss = clipped_surrogate(th.tensor([1.0, 1.0, -2.0, -2.0]), th.tensor([1.5, 0.5, 1.5, 0.5]), 0.2)
    assert loss.item() == pytest.approx(2.9 / 4)


def test_surrogate_gradient_stops_where_the_clip_binds() -> None:
    # The gradient by the ratio is -A / 4 where the unclipped term is the smaller one, and 0 elsewhere
    ratio = th.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    loss = clipped_surrogate(th.tensor([1.0, 1.0, -2.0, -2.0]), ratio, 0.2)
    assert gradient(loss, ratio).tolist() == [0.0, -0.25, 0.5, 0.0]


def test_surrogate_literal_with_weights() -> None:
    # The terms of the test above, 1.2, 0.5, -3 and -1.6, times 1, 2, 0.5 and 0: -(1.2 + 1 - 1.5) / 4
    weights = th.tensor([1.0, 2.0, 0.5, 0.0])
    loss = clipped_surrogate(th.tensor([1.0, 1.0, -2.0, -2.0]), th.tensor([1.5, 0.5, 1.5, 0.5]), 0.2, weights)
    assert loss.item() == pytest.approx(-0.7 / 4)


@pytest.mark.parametrize("clip_range", [0.01, 0.2, 2.0])
def test_surrogate_is_sb3_to_the_last_bit(clip_range: float) -> None:
    advantages, old_log_prob, log_prob = random_tensors(3)
    log_prob.requires_grad_()
    ours = clipped_surrogate(advantages, th.exp(log_prob - old_log_prob), clip_range)

    ratio = th.exp(log_prob - old_log_prob)
    policy_loss_1 = advantages * ratio
    policy_loss_2 = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    sb3 = -th.min(policy_loss_1, policy_loss_2).mean()

    assert ours.item() == sb3.item()
    gradient_of_ours = gradient(ours, log_prob)
    assert gradient_of_ours.any()
    assert th.equal(gradient_of_ours, gradient(sb3, log_prob))


def test_surrogate_at_ratio_one_has_the_policy_gradient() -> None:
    """Before the first update the gradient is that of -mean(A * log pi), here of a softmax over three actions."""
    advantages = random_tensors(1)[0]
    actions = th.arange(64) % 3
    logits = th.tensor([0.3, -0.2, 0.5], requires_grad=True)
    log_prob = th.log_softmax(logits, dim=0)[actions]
    surrogate = gradient(clipped_surrogate(advantages, th.exp(log_prob - log_prob.detach()), 0.2), logits)

    # d log pi(a) / d logit_k = [a = k] - pi(k)
    scores = F.one_hot(actions, 3) - th.softmax(logits.detach(), dim=0)
    th.testing.assert_close(surrogate, -(advantages[:, None] * scores).mean(dim=0))


# ---- value_loss


def test_value_loss_literal() -> None:
    values, old_values, returns = th.tensor([1.0, 5.0]), th.tensor([0.0, 5.5]), th.tensor([3.0, 6.0])
    # (3 - 1)^2 and (6 - 5)^2
    assert value_loss(values, old_values, returns, None).item() == pytest.approx(2.5)
    # 1 is held to 0 + 0.5; 5 is 5.5 - 0.5, just inside: (3 - 0.5)^2 and 1
    assert value_loss(values, old_values, returns, 0.5).item() == pytest.approx((6.25 + 1) / 2)
    # weights multiply the squares
    weights = th.tensor([2.0, 0.5])
    assert value_loss(values, old_values, returns, None, weights).item() == pytest.approx((2 * 4 + 0.5 * 1) / 2)
    assert value_loss(values, old_values, returns, 0.5, weights).item() == pytest.approx((2 * 6.25 + 0.5 * 1) / 2)


@pytest.mark.parametrize("clip_range_vf", [None, 0.3, 1.5])
def test_value_loss_is_sb3_to_the_last_bit(clip_range_vf: float | None) -> None:
    values, old_values, returns = random_tensors(3)
    values.requires_grad_()
    ours = value_loss(values, old_values, returns, clip_range_vf)

    if clip_range_vf is None:
        values_pred = values
    else:
        values_pred = old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)
    sb3 = F.mse_loss(returns, values_pred)

    assert ours.item() == sb3.item()
    gradient_of_ours = gradient(ours, values)
    assert gradient_of_ours.any()
    assert th.equal(gradient_of_ours, gradient(sb3, values))


# ---- entropy_loss


def test_entropy_literal() -> None:
    log_prob = th.tensor([-1.0, -4.0])
    assert entropy_loss(th.tensor([0.5, 1.5]), log_prob).item() == -1.0
    # without an entropy, minus the mean log probability, 2.5, stands in for it
    assert entropy_loss(None, log_prob).item() == -2.5


def test_entropy_is_sb3_to_the_last_bit() -> None:
    entropy, log_prob = random_tensors(2)
    entropy.requires_grad_()
    log_prob.requires_grad_()
    assert th.equal(gradient(entropy_loss(entropy, log_prob), entropy), gradient(-th.mean(entropy), entropy))
    assert th.equal(gradient(entropy_loss(None, log_prob), log_prob), gradient(-th.mean(-log_prob), log_prob))


# ---- diagnostics


def test_kl_literal() -> None:
    # log ratio ln 2: 2 - 1 - ln 2; log ratio -ln 2: 0.5 - 1 + ln 2. The logarithms cancel: (1 - 0.5) / 2
    log_ratio = th.tensor([math.log(2), -math.log(2)])
    assert approximate_kl(log_ratio).item() == pytest.approx(0.25)
    assert approximate_kl(th.zeros(3)).item() == 0.0


def test_kl_is_unbiased_and_never_negative() -> None:
    """Weighted by the old policy's probabilities, the terms add up to KL(old, new) exactly."""
    old, new = th.tensor([0.5, 0.3, 0.2], dtype=th.float64), th.tensor([0.2, 0.2, 0.6], dtype=th.float64)
    terms = th.stack([approximate_kl(log_ratio) for log_ratio in th.log(new / old)])
    assert (terms >= 0).all()
    assert (old * terms).sum().item() == pytest.approx((old * th.log(old / new)).sum().item())


def test_weighted_kl_is_that_of_the_policy_whatever_the_actions_are_drawn_from() -> None:
    """Drawn from μ and weighted by old/μ, the terms add up to KL(old, new) too."""
    old, new = th.tensor([0.5, 0.3, 0.2], dtype=th.float64), th.tensor([0.2, 0.2, 0.6], dtype=th.float64)
    drawn_from = th.tensor([0.1, 0.1, 0.8], dtype=th.float64)
    terms = th.stack([approximate_kl(one, w) for one, w in zip(th.log(new / old), old / drawn_from, strict=True)])
    assert (drawn_from * terms).sum().item() == pytest.approx((old * th.log(old / new)).sum().item())


def test_clip_fraction_literal() -> None:
    # 0.75 and 1.25 lie on the border of 0.25, which is not outside
    ratio = th.tensor([0.5, 0.75, 1.0, 1.25, 1.5])
    assert clip_fraction(ratio, 0.25).item() == pytest.approx(0.4)


def test_kl_and_clip_fraction_are_sb3_to_the_last_bit() -> None:
    log_ratio = random_tensors(1)[0] * 0.3
    ratio = th.exp(log_ratio)
    assert approximate_kl(log_ratio).item() == th.mean((th.exp(log_ratio) - 1) - log_ratio).item()
    assert clip_fraction(ratio, 0.2).item() == th.mean((th.abs(ratio - 1) > 0.2).float()).item()
    assert 0 < clip_fraction(ratio, 0.2).item() < 1


# ---- normalize_advantages


def test_normalize_literal() -> None:
    # mean 2; the sample standard deviation divides by n - 1: sqrt((1 + 0 + 1) / 2) = 1
    assert normalize_advantages(th.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_normalize_leaves_a_single_advantage_alone() -> None:
    assert normalize_advantages(th.tensor([7.0])).tolist() == [7.0]


def test_normalize_is_sb3_to_the_last_bit() -> None:
    advantages = random_tensors(1)[0] * 5 + 3
    sb3 = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    assert th.equal(normalize_advantages(advantages), sb3)
