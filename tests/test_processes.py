"""What is sent to the processes of a SubprocVecEnv, and that every answer is read by whom it is for."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.branching.processes import step_env
from sb3_hybrid_grpo.errors import BranchingError
from tests.toy_envs import FragileWalk


def _groups(env: VecEnv) -> Groups:
    groups = Groups(env, n_samples=3, branch_horizon=4)
    groups.start(env_was_reset=True, seed=None)
    return groups


def test_member_0_steps_while_the_siblings_answers_are_read(processes: SubprocVecEnv) -> None:
    dummy = DummyVecEnv([FragileWalk] * 3)
    dummy.seed(4)
    dummy.reset()
    one, other = _groups(dummy), _groups(processes)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(6, size=(3, 3))
        mine, theirs = one.step(actions), other.step(actions)
        np.testing.assert_array_equal(mine.observations, np.asarray(theirs.observations, dtype=np.float32))
        np.testing.assert_array_equal(mine.rewards_NE, theirs.rewards_NE)
        np.testing.assert_array_equal(mine.cut_NE, theirs.cut_NE)


@pytest.mark.parametrize("failure", ["sibling", "interrupt"])
def test_a_step_that_is_broken_off_leaves_no_answer_behind(
    processes: SubprocVecEnv, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    groups, actions = _groups(processes), np.ones((3, 3), dtype=int)
    groups.step(actions)
    if failure == "sibling":
        with pytest.raises(BranchingError, match=r"step of member 2 \(a sibling\) of env 1 failed"):
            groups.step(np.array([[1, 1, 1], [1, 1, 1], [1, 7, 1]]))
    else:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("sb3_hybrid_grpo.branching.groups.check_numbers", interrupt)
            groups.step(actions)
    assert all(isinstance(x, float) for x in processes.get_attr("x"))
    groups.start(env_was_reset=False, seed=None)
    assert len(groups.step(actions).observations) == 3


def test_a_process_that_dies_in_member_0s_step_is_named(processes: SubprocVecEnv) -> None:
    groups = _groups(processes)
    with pytest.raises(BranchingError, match=r"At step 1 .* the process of env 2 died in the step of member 0"):
        groups.step(np.array([[1, 1, 8], [1, 1, 1], [1, 1, 1]]))
    with pytest.raises(BranchingError, match="the process of env 2 died while it stepped the env's siblings"):
        groups.step(np.ones((3, 3), dtype=int))


def test_a_wrapper_that_sends_nothing_until_it_waits_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeat(VecEnvWrapper):
        """Takes every action twice."""

        def reset(self) -> Any:
            return self.venv.reset()

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            self.venv.step(self.actions)
            return self.venv.step(self.actions)

    def endless(remote: Any, process: Any) -> None:
        raise AssertionError("waits for an answer that nobody was asked for")

    env = Repeat(SubprocVecEnv([FragileWalk]))
    try:
        env.reset()
        with monkeypatch.context() as patched:
            patched.setattr("sb3_hybrid_grpo.branching.processes._await", endless)
            assert len(step_env(env, np.array([1]), 1)[0]) == 1
    finally:
        env.close()
