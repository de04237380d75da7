"""When siblings fork, what they start from, and which of their steps belong to one trace."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import BranchHorizon, Groups, GroupStep
from sb3_hybrid_grpo.errors import BranchingError


class Line(gym.Env[Any, Any]):
    """Stands at the sum of its actions: action 5 ends the episode, 6 cuts it off, 7 and 8 give NaN."""

    def __init__(self, start: int = 0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = spaces.Discrete(9)
        self.x, self.episode, self.start = 0, -1, start

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.x = self.start + 1000 * self.episode
        return self._observe(), {}

    def _observe(self, lost: bool = False) -> np.ndarray:
        return np.array([np.nan if lost else self.x], dtype=np.float32)

    def step(self, action: Any) -> Any:
        self.x += int(action)
        return self._observe(action == 7), np.nan if action == 8 else float(action), action == 5, action == 6, {}


class Pairs(Line):
    """The same, as a Dict."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"here": self.observation_space})

    def _observe(self, lost: bool = False) -> Any:
        return {"here": super()._observe(lost)}


class Run:
    """Groups of three over two envs, and the observations that members act on."""

    def __init__(self, horizon: BranchHorizon) -> None:
        self.groups = Groups(DummyVecEnv([lambda: Line(0), lambda: Line(100)]), 3, horizon)
        self.last = self.groups.env.reset()
        self.groups.start(True, None)

    def act(self, actions: list[list[int]]) -> tuple[list[list[float]], GroupStep]:
        here = self.groups.observations(self.last)
        step = self.groups.step(np.array(actions))
        self.last = step.observations
        return here.reshape(-1, 2).tolist(), step


def test_all_siblings_fork_every_so_many_steps() -> None:
    run = Run(2)
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[0, 100]] * 3
    assert not step.cut_NE.any() and step.reached is None
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[1, 101], [2, 102], [3, 103]]
    assert step.cut_NE.tolist() == [[False, False], [True, True], [True, True]]
    assert not step.terminated_NE.any()
    assert step.reached[:, 0].tolist() == [4, 104, 6, 106]
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[2, 102]] * 3
    assert step.rewards_NE.tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_group_forks_where_member_0s_episode_ends() -> None:
    for horizon in (64, "episode"):
        run = Run(horizon)
        run.act([[1, 1], [2, 2], [3, 3]])
        _, step = run.act([[5, 6], [2, 2], [3, 3]])
        assert step.cut_NE.all()
        assert step.terminated_NE.tolist() == [[True, False], [False, False], [False, False]]
        assert step.reached[:, 0].tolist() == [107, 4, 104, 6, 106]  # env 1's member 0 was cut off, not terminated
        assert step.sibling_ends == 0
        here, _ = run.act([[1, 1]] * 3)
        assert here == [[1000, 1100]] * 3


def test_a_sibling_whose_episode_ends_forks_alone() -> None:
    run = Run(4)
    run.act([[1, 1], [2, 2], [3, 3]])
    _, step = run.act([[1, 1], [5, 2], [3, 6]])
    assert step.cut_NE.tolist() == [[False, False], [True, False], [False, True]]
    assert step.terminated_NE.tolist() == [[False, False], [True, False], [False, False]]
    assert step.reached[:, 0].tolist() == [109]
    assert step.sibling_ends == 2
    assert run.groups.starts_ME.tolist() == [[True, False], [False, True]]
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[2, 102], [2, 104], [6, 102]]
    _, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert step.cut_NE[1:].all(), "the group's clock goes on"


def test_the_clock_starts_again_with_the_episode() -> None:
    run = Run(3)
    run.act([[1, 1]] * 3)
    run.act([[5, 1], [1, 1], [1, 1]])
    cuts = [run.act([[1, 1]] * 3)[1].cut_NE[1].tolist() for _ in range(4)]
    assert cuts == [[False, True], [False, False], [True, False], [False, True]]


def test_an_episode_is_never_cut_short_by_the_clock() -> None:
    run = Run("episode")
    assert not any(run.act([[1, 1]] * 3)[1].cut_NE.any() for _ in range(100))


def test_with_a_horizon_of_one_all_members_share_each_state() -> None:
    run = Run(1)
    assert run.groups.shares_states
    for t in range(3):
        here, step = run.act([[1, 1], [2, 2], [5, 6]])
        assert here == [[t, 100 + t]]
        assert step.cut_NE.tolist() == [[False, False], [True, True], [True, True]]
        assert step.reached[:, 0].tolist() == [t + 2, t + 102, t + 106]
        assert step.terminated_NE[2].tolist() == [True, False]


def test_free_siblings_reset_by_themselves() -> None:
    run = Run("free")
    here, step = run.act([[1, 1], [5, 2], [3, 6]])
    # each sibling's first episode is one more than what the env had seen by then
    assert here == [[0, 100], [1000, 1100], [1000, 1100]]
    assert step.cut_NE.tolist() == [[False, False], [True, False], [False, True]]
    assert step.reached[:, 0].tolist() == [1106]
    assert step.sibling_ends == 2
    here, step = run.act([[5, 1], [2, 2], [3, 3]])
    assert here == [[1, 101], [2000, 1102], [1003, 2100]]
    assert step.cut_NE.tolist() == [[True, False], [False, False], [False, False]]
    here, _ = run.act([[1, 1]] * 3)
    assert here == [[1000, 102], [2002, 1104], [1006, 2103]]


def test_a_training_that_goes_on_leaves_siblings_where_they_are() -> None:
    run = Run(10)
    run.act([[1, 1], [2, 2], [3, 3]])
    run.groups.start(False, None)
    assert run.act([[1, 1]] * 3)[0] == [[1, 101], [2, 102], [3, 103]]
    run.last = run.groups.env.reset()
    run.groups.start(True, None)
    here = run.act([[1, 1]] * 3)[0]
    assert here[0] == here[1] == here[2]
    free = Run("free")
    free.act([[1, 1], [2, 2], [3, 3]])
    free.groups.start(False, None)
    assert free.act([[1, 1]] * 3)[0] == [[1, 101], [1002, 1102], [1003, 1103]]
    free.last = free.groups.env.reset()
    free.groups.start(True, None)
    assert free.act([[1, 1]] * 3)[0] == [[1000, 1100], [2000, 2100], [2000, 2100]]


def test_one_member_is_the_env_itself() -> None:
    groups = Groups(DummyVecEnv([Line]), 1, 64)
    last = groups.env.reset()
    groups.start(True, None)
    assert groups.observations(last) is last
    assert groups.step(np.array([[6]])).reached[:, 0].tolist() == [6]
    step = groups.step(np.array([[5]]))
    assert step.reached is None
    assert (step.rewards_NE.tolist(), step.cut_NE.tolist(), step.terminated_NE.tolist()) == ([[5]], [[True]], [[True]])


@pytest.mark.parametrize(("action", "what"), [(7, "observation"), (8, "reward")])
def test_a_nan_of_a_sibling_is_named(action: int, what: str) -> None:
    run = Run(64)
    for _ in range(3):
        run.act([[1, 1]] * 3)
    with pytest.raises(BranchingError, match=rf"The {what} of member 2 \(a sibling\) of env 1 is NaN at step 4 "):
        run.act([[1, 1], [1, 1], [1, action]])
    run.groups.start(False, None)
    assert run.act([[1, 1]] * 3)[0] == [[3, 103]] * 3, "member 0 did not take the step"
    assert run.act([[1, 1]] * 3)[0] == [[4, 104]] * 3


def test_a_nan_in_a_dict_is_named_with_its_key() -> None:
    groups = Groups(DummyVecEnv([Pairs]), 2, 64)
    groups.observations(groups.env.reset())
    groups.start(True, None)
    with pytest.raises(BranchingError, match="The observation 'here' of member 1"):
        groups.step(np.array([[1], [7]]))


def test_free_siblings_that_an_error_left_anywhere_start_anew() -> None:
    run = Run("free")
    with pytest.raises(BranchingError):
        run.act([[1, 1], [1, 1], [1, 8]])
    run.groups.start(False, None)
    here, _ = run.act([[1, 1]] * 3)
    assert np.array(here)[1:].tolist() == [[2000, 2100], [2000, 2100]]
