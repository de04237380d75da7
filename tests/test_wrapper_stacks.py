"""
Wrappers that change what a step does, or remember something, are branched exactly, alone and in the Zoo's stacks: the quick
part of benchmarks/branching/wrappers.py, whose table has them all, for 1500 steps. The rest is slow.
"""

import collections
import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from sb3_hybrid_grpo.branching import copier
from sb3_hybrid_grpo.branching.sibling import SiblingMaker
from tests.zoo import zoo_in

with pytest.MonkeyPatch.context() as _patch:
    _patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks" / "branching")
    twins: Any = importlib.import_module("twins")
    wrappers: Any = importlib.import_module("wrappers")

STEPS = 150
QUICK = (
    *("Autoreset", "DelayObservation", "FrameStackObservation(stack_size=4)", "NormalizeObservation", "NormalizeReward"),
    *("StickyAction(repeat_action_probability=0.2", "TimeAwareObservation(flatten", "TimeFeatureWrapper(test_mode", "Monitor"),
    *("AtariWrapper(action_repeat", "ActionSmoothingWrapper(smoothing_coef=0.6", "DelayedRewardWrapper(delay=7"),
    *("HistoryWrapperObsDict(horizon=3", "TruncatedOnSuccessWrapper(n_", "Zoo: ActionNoise", "Zoo: FrameSkip(skip=4"),
)
"""Those that remember something, one of a kind."""
CASES = [
    pytest.param(case, make, id=name, marks=() if name.startswith(QUICK) else pytest.mark.slow)
    for name, case, make in wrappers.cases()
]


@pytest.mark.parametrize("horizon", [1, 64])
@pytest.mark.parametrize(("case", "make"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_siblings_under_wrappers_see_what_twins_see(case: Any, make: Any, horizon: int, tmp_path: Path) -> None:
    pytest.importorskip(case.needs)
    if case.needs != "gymnasium":
        gym.register_envs(importlib.import_module(case.needs))
    n_steps = STEPS // case.share // (5 if case.needs == "Box2D" else 1)  # its siblings are processes
    with zoo_in(tmp_path) if "rl_zoo3" in str(case.wrappers) else nullcontext():
        assert twins.differs(make, horizon, n_steps) == ""


def test_a_copy_that_is_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    make = next(make for name, _, make in wrappers.cases() if name.startswith("FrameStackObservation"))
    monkeypatch.setattr(SiblingMaker, "check", lambda self, shared: None)
    assert twins.differs(make, 1, 20) == ""
    monkeypatch.setitem(copier._RULES, collections.deque, lambda _, obj: obj)
    assert twins.differs(make, 1, 20) != ""


def test_quick_ones_are_there() -> None:
    names = [name for name, _, _ in wrappers.cases()]
    assert all(any(name.startswith(quick) for name in names) for quick in QUICK)
