"""
A pytest plugin that puts this package's algorithms in the place of those of Stable-Baselines3 and sb3-contrib before their
tests import them, and reports what came of it. Used by upstream_tests.sh.

UPSTREAM_TITLE: what the report calls the tests.
UPSTREAM_REPORT: the file that the report is added to.
UPSTREAM_N_SAMPLES: n_samples, which their tests do not know; empty: this package's default.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3

import sb3_hybrid_grpo

N_SAMPLES = os.environ["UPSTREAM_N_SAMPLES"]
REPLACED = {
    (stable_baselines3, "PPO"): sb3_hybrid_grpo.HybridGRPO,
    (sb3_contrib, "MaskablePPO"): sb3_hybrid_grpo.MaskableHybridGRPO,
    (sb3_contrib, "RecurrentPPO"): sb3_hybrid_grpo.RecurrentHybridGRPO,
}
# Algorithms that are not replaced: a test that has one of them as a parameter is not about PPO.
OTHERS = re.compile(r"A2C|DDPG|DQN|SAC|TD3|TRPO|TQC|ARS|ARS_MULTI|CrossQ|QRDQN", re.IGNORECASE)
# Tests that cannot hold with more than one sample, and why. Each must fail: one that passes is an error.
CANNOT_HOLD = {
    "test_ppo_warnings": "Trains with `n_steps=1`, fewer samples than a group has members. The error names both.",
    "test_rollout_success_rate_onpolicy_algo": (
        "Counts on ten episodes in so many rollouts, of which some are grouped probes, whose siblings' steps belong to no "
        "executed episode."
    ),
    "test_identity": "The score is 85 and not yet 90: rollouts are grouped, for the env draws random numbers in its steps.",
}


made = 0
makes_ours: dict[str, bool] = {}
outcomes: dict[str, str] = {}


def replacement(algorithm: type[Any], name: str) -> type[Any]:
    """
    Make a subclass that counts its models.

    :param algorithm: One of this package's
    :param name: The name of what it replaces, which tests find in messages and folders
    :return: The subclass, under that name
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        global made
        made += 1
        samples = {"n_samples": int(N_SAMPLES)} if N_SAMPLES else {}
        algorithm.__init__(self, *args, **{**samples, **kwargs})

    return type(name, (algorithm,), {"__init__": __init__, "__module__": algorithm.__module__})


for (module, name), ours in REPLACED.items():
    setattr(module, name, replacement(ours, name))


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    def of_another(item: Any) -> bool:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else []
        return any(OTHERS.fullmatch(str(getattr(value, "__name__", value))) for value in parameters)

    config.hook.pytest_deselected(items=[item for item in items if of_another(item)])
    items[:] = [item for item in items if not of_another(item)]
    for item in items:
        reason = CANNOT_HOLD.get(item.name) or CANNOT_HOLD.get(item.originalname)
        if reason and N_SAMPLES != "1":
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Any:
    before = made
    result = yield
    makes_ours[item.nodeid] = made > before
    return result


def pytest_runtest_logreport(report: Any) -> None:
    if hasattr(report, "wasxfail") and report.skipped:
        outcomes[report.nodeid] = f"left out: {report.wasxfail}"
    elif report.skipped:
        outcomes[report.nodeid] = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
    elif report.failed:
        outcomes[report.nodeid] = "failed"
    elif report.when == "call":
        outcomes[report.nodeid] = "passed"


def pytest_sessionfinish() -> None:
    ours, others = ([outcomes[one] for one, is_it in makes_ours.items() if is_it is kind] for kind in (True, False))
    lines = [f"## {os.environ['UPSTREAM_TITLE']}", ""]
    lines += [f"- {number} {outcome}" for outcome, number in sorted(Counter(ours).items(), key=lambda one: one[0] != "passed")]
    lines += [f"- failed: `{one}`" for one, outcome in outcomes.items() if outcome == "failed"]
    without = ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(others).items()))
    lines += [f"- Tests that make no such model, of what stands around them: {without}", "", ""]
    with Path(os.environ["UPSTREAM_REPORT"]).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))
