"""When siblings fork, what they start from, and which of their steps belong to one trace."""

from typing import Any, ClassVar

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
        self.groups.start(True)

    def act(self, actions: list[list[int]]) -> tuple[list[list[float]], GroupStep]:
        here = self.groups.observations(self.last)
        step = self.groups.step(np.array(actions))
        self.last = step.new_obs[:2]
        return here.reshape(-1, 2).tolist(), step


def test_all_siblings_fork_every_so_many_steps() -> None:
    run = Run(2)
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[0, 100]] * 3
    assert not step.cut_NE.any() and not step.dones_NE.any()
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[1, 101], [2, 102], [3, 103]]
    assert step.cut_NE.tolist() == [[False, False], [True, True], [True, True]]
    assert not step.terminated_NE.any()
    assert step.new_obs.reshape(-1, 2).tolist() == [[2, 102], [4, 104], [6, 106]]
    here, step = run.act([[1, 1], [2, 2], [3, 3]])
    assert here == [[2, 102]] * 3
    assert np.array(step.rewards).tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_group_forks_where_member_0s_episode_ends() -> None:
    for horizon in (64, "episode"):
        run = Run(horizon)
        run.act([[1, 1], [2, 2], [3, 3]])
        _, step = run.act([[5, 6], [2, 2], [3, 3]])
        assert step.cut_NE.all()
        assert step.terminated_NE.tolist() == [[True, False], [False, False], [False, False]]
        assert step.infos[0][1]["terminal_observation"].tolist() == [107]
        assert step.new_obs[2:].reshape(-1, 2).tolist() == [[4, 104], [6, 106]]
        assert step.dones_NE.tolist() == [[True, True], [False, False], [False, False]]
        here, _ = run.act([[1, 1]] * 3)
        assert here == [[1000, 1100]] * 3


def test_a_sibling_whose_episode_ends_forks_alone() -> None:
    run = Run(4)
    run.act([[1, 1], [2, 2], [3, 3]])
    _, step = run.act([[1, 1], [5, 2], [3, 6]])
    assert step.cut_NE.tolist() == [[False, False], [True, False], [False, True]]
    assert step.terminated_NE.tolist() == [[False, False], [True, False], [False, False]]
    assert step.dones_NE.tolist() == [[False, False], [True, False], [False, True]]
    assert step.infos[2][1] == {"group_member": 2, "terminal_observation": [109], "TimeLimit.truncated": True}
    assert step.infos[1][0] == {"group_member": 1, "terminal_observation": [7], "TimeLimit.truncated": False}
    assert step.infos[1][1] == {"group_member": 1}
    assert step.new_obs.reshape(-1, 2).tolist() == [[2, 102], [2, 104], [6, 102]], "who ended forks from member 0"
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


def test_a_training_that_goes_on_leaves_siblings_where_they_are() -> None:
    run = Run(10)
    run.act([[1, 1], [2, 2], [3, 3]])
    run.groups.start(False)
    assert run.act([[1, 1]] * 3)[0] == [[1, 101], [2, 102], [3, 103]]
    run.last = run.groups.env.reset()
    run.groups.start(True)
    here = run.act([[1, 1]] * 3)[0]
    assert here[0] == here[1] == here[2]


def test_one_member_is_the_env_itself() -> None:
    groups = Groups(DummyVecEnv([Line]), 1, 64)
    last: Any = groups.env.reset()
    groups.start(True)
    step = groups.step(np.array([[6]]))
    assert groups.observations(last).tolist() == last.tolist()
    assert step.infos[0][0]["terminal_observation"].tolist() == [6]
    step = groups.step(np.array([[5]]))
    assert (np.array(step.rewards).tolist(), step.cut_NE.tolist(), step.terminated_NE.tolist()) == ([[5]], [[True]], [[True]])


def test_member_0_may_step_alone_and_all_fork_from_it_then() -> None:
    run = Run(64)
    run.act([[1, 1], [2, 2], [3, 3]])
    step = run.groups.step(np.array([[1, 1]]))
    assert len(step.rewards) == len(step.infos) == len(step.dones_NE) == 1
    run.last = step.new_obs
    assert run.act([[1, 1]] * 3)[0] == [[2, 102]] * 3


class Counted(Line):
    """Counts the steps of members, copies included."""

    n_steps: ClassVar[list[int]] = [0]

    def step(self, action: Any) -> Any:
        self.n_steps[0] += 1
        return super().step(action)


def test_where_member_0_steps_alone_no_sibling_lives() -> None:
    env = DummyVecEnv([Counted])
    groups = Groups(env, 3, 64)
    env.reset()
    groups.start(True)
    branching: Any = env.envs[0]
    branching.sibling_maker.watchable = True  # as a check finds
    groups.step(np.array([[1], [2], [3]]))
    assert Counted.n_steps[0] == 4  # of member 0, two siblings and the one that watches
    for _ in range(5):
        groups.step(np.array([[1]]))
        assert not vars(branching)["_BranchingWrapper__siblings"]
    assert Counted.n_steps[0] == 9


def test_with_a_horizon_of_one_all_members_fork_at_every_step() -> None:
    run = Run(1)
    for t in range(3):
        here, step = run.act([[1, 1], [2, 2], [5, 6]])
        assert here == [[t, 100 + t]] * 3
        assert step.cut_NE.tolist() == [[False, False], [True, True], [True, True]]
        assert step.terminated_NE[2].tolist() == [True, False]


@pytest.mark.parametrize(("action", "what"), [(7, "observation"), (8, "reward")])
def test_a_nan_of_a_sibling_is_named(action: int, what: str) -> None:
    run = Run(64)
    for _ in range(3):
        run.act([[1, 1]] * 3)
    with pytest.raises(BranchingError, match=rf"The {what} of member 2 \(a sibling\) of env 1 is NaN at step 4 "):
        run.act([[1, 1], [1, 1], [1, action]])
    run.groups.start(False)
    assert run.act([[1, 1]] * 3)[0] == [[3, 103]] * 3, "member 0 did not take the step"
    assert run.act([[1, 1]] * 3)[0] == [[4, 104]] * 3


def test_a_nan_in_a_dict_is_named_with_its_key() -> None:
    groups = Groups(DummyVecEnv([Pairs]), 2, 64)
    groups.observations(groups.env.reset())
    groups.start(True)
    with pytest.raises(BranchingError, match="The observation 'here' of member 1"):
        groups.step(np.array([[1], [7]]))
