"""Every combination of options trains, or is refused with the reason: none is silently ignored."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_hybrid_grpo import HybridGRPO
from tests.toy_envs import walk

OPTIONS: dict[str, list[Any]] = {
    "n_samples": [1, 3],
    "branch_horizon": [1, 4, "episode", "auto"],
    "advantage_estimator": ["hybrid", "paper", "paper_per_sample", "grpo"],
    "group_baseline": ["auto", 0.5],
    "reward_transform": [None, "group", ["scale", "tanh"]],
    "action_selection": ["on_policy", "greedy", "softmax"],
}


def refused(options: dict[str, Any]) -> bool:
    """What makes no sense, in the words of the documentation."""
    n_samples, horizon, estimator = options["n_samples"], options["branch_horizon"], options["advantage_estimator"]
    single = horizon == "auto"  # some rollouts are
    selects = options["action_selection"] != "on_policy"
    return bool(
        (estimator == "grpo" and (n_samples == 1 or single))
        or (estimator.startswith("paper") and (single or (n_samples == 1 and horizon != 1)))
        or (options["group_baseline"] != "auto" and (estimator != "hybrid" or n_samples == 1))
        or (options["reward_transform"] == "group" and (n_samples == 1 or single))
        or (selects and (n_samples == 1 or horizon != 1 or estimator == "grpo"))
    )


def trained(options: dict[str, Any]) -> list[np.ndarray]:
    th.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a last minibatch that is smaller
        model = HybridGRPO("MlpPolicy", walk(max_steps=5), n_steps=12, batch_size=12, n_epochs=1, seed=0, **options).learn(48)
    return [parameter.detach().numpy() for parameter in model.policy.parameters()]


@pytest.mark.parametrize("estimator", OPTIONS["advantage_estimator"])
@pytest.mark.parametrize("horizon", OPTIONS["branch_horizon"])
def test_each_trains_or_is_refused(horizon: Any, estimator: str) -> None:
    others = [name for name in OPTIONS if name not in ("branch_horizon", "advantage_estimator")]
    seen = 0
    for values in itertools.product(*(OPTIONS[name] for name in others)):
        options = {**dict(zip(others, values, strict=True)), "branch_horizon": horizon, "advantage_estimator": estimator}
        if refused(options):
            with pytest.raises(ValueError, match="Received"):
                trained(options)
        else:
            seen += 1
            assert all(np.isfinite(parameter).all() for parameter in trained(options)), options
    assert seen > 0 or (estimator != "hybrid" and horizon == "auto")


@pytest.mark.parametrize(
    "change",
    [
        {"n_samples": 4},
        {"branch_horizon": 2},
        {"advantage_estimator": "paper"},
        {"advantage_estimator": "grpo"},
        {"group_baseline": 0.0},
        {"reward_transform": "symlog"},
        {"reward_transform": "clip", "reward_scale": 100},
        {"reward_transform": "group"},
        {"reward_transform": "normalize"},
        {"action_selection": "greedy"},
        {"action_selection": "softmax", "selection_temperature": 0.1},
        {"ent_coef": 0.1},
    ],
    ids=str,
)
def test_each_changes_what_is_learned(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"n_samples": 3, "branch_horizon": 1}
    options = {**base, **change}
    if options.pop("reward_scale", 1) != 1:  # rewards of about 1 are clipped only if something makes them large
        base, options = ({**base, "reward_transform": one} for one in (_times_100, [_times_100, "clip"]))
    assert any((one != other).any() for one, other in zip(trained(base), trained(options), strict=True))


def _times_100(rewards: np.ndarray) -> np.ndarray:
    return 100 * rewards
