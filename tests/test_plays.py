"""Differences are found bit for bit, and named."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_hybrid_grpo.branching.plays import RandomActions, chosen, difference, has_ended, played
from tests.toy_envs import walk


def step(observation: Any, reward: float = 0.0, terminated: bool = False) -> dict[str, Any]:
    return {"observation": observation, "reward": reward, "terminated": terminated, "truncated": False}


@pytest.mark.parametrize(
    ("truth", "again", "message"),
    [
        ([step(np.array([1.0, np.nan]))], [step(np.array([1.0, np.nan]))], None),
        ([step(np.array([[1.0, 2.0]]))], [step(np.array([[1.0, 2.5]]))], "observation[0, 1]: 2.0 became 2.5 at step 1"),
        ([step(0), step(1, 0.5)], [step(0), step(1, 0.25)], "reward: 0.5 became 0.25 at step 2"),
        ([step({"a": 1, "b": np.zeros(2)})], [step({"a": 1, "b": np.ones(2)})], "observation['b'][0]: 0.0 became 1.0"),
        ([step((1, "x"))], [step((1, "y"))], "observation[1]: 'x' became 'y'"),
        ([step(np.zeros(1))], [step(-np.zeros(1))], "observation: array([0.]) became array([-0.])"),
        ([step(np.zeros(2))], [step(np.zeros(3))], "observation: array([0., 0.]) became array([0., 0., 0.])"),
        ([step(0, terminated=True)], [step(0)], "terminated: True became False at step 1"),
        ([step(0)], [step(0), step(1)], "once the episode ended at step 1"),
        ([step(0), {"observation after a reset": 1}], [step(0), step(1)], "once the episode ended at step 1"),
    ],
)
def test_differences(truth: Any, again: Any, message: str | None) -> None:
    found = difference(truth, again)
    assert found is None if message is None else message in str(found)


def test_a_play_ends_with_the_episode() -> None:
    env = walk(max_steps=3)
    env.reset(seed=0)
    seen = played(env, [env.action_space.sample() for _ in range(8)])
    assert len(seen) <= 3 and has_ended(seen) and not has_ended(seen[:-1])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("space", [spaces.Discrete(3, start=5), spaces.MultiDiscrete([3, 3], start=[5, -4])])
def test_actions_are_counted_from_0_as_those_of_a_policy(space: Any, masked: bool) -> None:
    env = walk(action_space=space)
    if masked:
        env.unwrapped.action_masks = lambda: np.ones(3 if isinstance(space, spaces.Discrete) else 6)  # type: ignore[attr-defined]
    drawn = [chosen(env, action) for action in RandomActions(env).draw(40)]
    assert {number for action in drawn for number in np.atleast_1d(action).tolist()} == {0, 1, 2}


def test_each_time_an_action_is_taken_it_is_another_object() -> None:
    action = np.zeros(2)
    chosen(walk(), action)[:] = 1
    assert action.tolist() == [0, 0]
