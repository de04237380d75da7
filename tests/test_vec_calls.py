"""What is sent to the processes of a SubprocVecEnv, and that every answer is read by whom it is for."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import Candidates, Groups, vec_wrappers
from sb3_hybrid_grpo.branching.vec_calls import Fanout, step_env
from sb3_hybrid_grpo.errors import BranchingError
from tests.toy_envs import FragileWalk


def _groups(env: VecEnv) -> Groups:
    groups = Groups(env, n_samples=3, branch_horizon=4)
    groups.start(env_was_reset=True)
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
        np.testing.assert_array_equal(mine.new_obs, np.asarray(theirs.new_obs, dtype=np.float32))
        np.testing.assert_array_equal(mine.rewards, np.asarray(theirs.rewards, dtype=np.float32))
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
    groups.start(env_was_reset=False)
    assert len(groups.step(actions).new_obs) == 9


def test_a_choice_that_is_broken_off_leaves_no_answer_behind(
    processes: SubprocVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = Candidates(processes, n_samples=3, choose=lambda observations, rewards, terminated: np.zeros(3, dtype=int))
    candidates.start(env_was_reset=True)
    actions = np.ones((3, 3), dtype=int)
    candidates.step(actions)

    def interrupt(self: SubprocVecEnv) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SubprocVecEnv, "step_wait", interrupt)
        candidates.step(actions)
    assert candidates.lost_member_0
    assert all(isinstance(x, float) for x in processes.get_attr("x"))
    candidates.start(env_was_reset=False)
    assert len(candidates.step(actions).new_obs) == 9


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
            patched.setattr("sb3_hybrid_grpo.branching.vec_calls._await", endless)
            assert len(step_env(env, np.array([1]), 1)[0]) == 1
    finally:
        env.close()


def test_a_step_that_is_half_sent_leaves_no_answer_behind(processes: SubprocVecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, actions = _groups(processes), np.ones((3, 3), dtype=int)
    groups.step(actions)

    class Interrupted:
        """A pipe that is interrupted when it is to send a step."""

        def __init__(self, remote: Any) -> None:
            self.remote = remote

        def send(self, message: Any) -> None:
            if message[0] == "step":
                raise KeyboardInterrupt
            self.remote.send(message)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.remote, name)

    whole = processes.remotes
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("sb3_hybrid_grpo.branching.vec_calls._PATIENCE", 0.5)
        processes.remotes = (*whole[:2], Interrupted(whole[2]))
        groups.step(actions)
    processes.remotes = whole
    assert all(isinstance(x, float) for x in processes.get_attr("x"))
    assert groups.lost_member_0


def _calm_walk() -> gym.Env[Any, Any]:
    env = FragileWalk()
    env.action_space = gym.spaces.Discrete(6)
    return make_branchable(env)


@pytest.fixture
def calm() -> Iterator[SubprocVecEnv]:
    env = SubprocVecEnv([_calm_walk] * 2, start_method="fork")
    yield env
    env.close()


def test_envs_that_are_nobody_knows_where_are_reset_before_a_training_goes_on(
    calm: SubprocVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HybridGRPO(
        "MlpPolicy", calm, n_samples=3, branch_horizon=64, n_steps=8, batch_size=24, n_epochs=1, branching_check=False
    )
    model.learn(24)
    check, steps = vec_wrappers.check_numbers, []

    def interrupt(*args: Any) -> None:
        steps.append(args)
        if len(steps) == 5:
            raise KeyboardInterrupt
        check(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("sb3_hybrid_grpo.branching.groups.check_numbers", interrupt)
        model.learn(24, reset_num_timesteps=False)

    class First(BaseCallback):
        """Remembers what members act on first."""

        def _on_step(self) -> bool:
            return True

        def _on_training_start(self) -> None:
            first.append(np.array(self.model._last_obs))

    first: list[np.ndarray] = []
    model.learn(24, reset_num_timesteps=False, callback=First())
    assert first[0][:, 1].tolist() == [0.0, 0.0]  # 1 after a step


def _step(fanout: Fanout, actions: Any, forks: bool) -> list[Any]:
    actions = np.asarray(actions)
    shape = actions.shape
    return fanout.step(actions, np.full(shape, forks))


def _same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.observations, other.observations)
    assert one[1:4] == other[1:4]


def test_one_process_and_many_give_the_same_siblings(processes: SubprocVecEnv) -> None:
    dummy = DummyVecEnv([FragileWalk] * 3)
    dummy.seed(4)
    dummy.reset()
    fanouts = Fanout(dummy), Fanout(processes)
    rng = np.random.default_rng(0)
    for t in range(20):
        actions = rng.integers(6, size=(2, 3))
        one, other = (_step(fanout, actions, forks=t % 5 == 0) for fanout in fanouts)
        for e in range(3):
            _same(one[e], other[e])
        mine, theirs = dummy.step(actions[0]), processes.step(actions[0])
        np.testing.assert_array_equal(mine[0], np.asarray(theirs[0], dtype=np.float32))


@pytest.mark.parametrize("many", [False, True])
def test_a_sibling_that_fails_is_named_and_the_envs_live_on(processes: SubprocVecEnv, many: bool) -> None:
    env: VecEnv = processes if many else DummyVecEnv([FragileWalk] * 3)
    env.reset()
    fanout = Fanout(env)
    with pytest.raises(BranchingError, match=r"step of member 2 \(a sibling\) of env 1 failed: ZeroDivisionError.*was 7"):
        _step(fanout, [[1, 1, 1], [1, 7, 1]], forks=True)
    assert len(_step(fanout, [[1, 1, 1], [1, 2, 1]], forks=True)) == 3
    assert len(env.step(np.ones(3, dtype=int))[0]) == 3


def test_a_dead_process_is_an_error_and_no_wait(processes: SubprocVecEnv) -> None:
    fanout = Fanout(processes)
    with pytest.raises(BranchingError, match="process of env 1 died"):
        _step(fanout, [[1, 8, 1]], forks=True)
    with pytest.raises(BranchingError, match="process of env 1 died"):
        _step(fanout, [[1, 1, 1]], forks=True)


def test_siblings_of_a_dead_process_can_be_given_up_for_new_envs(processes: SubprocVecEnv) -> None:
    groups = _groups(processes)
    groups.step(np.ones((3, 3), dtype=int))
    processes.processes[0].kill()
    processes.processes[0].join()
    groups.drop_siblings()  # as set_env does
    assert groups.starts_ME.all()


def test_processes_without_branchable_envs_get_the_line_to_add() -> None:
    env = SubprocVecEnv([FragileWalk], start_method="fork")
    try:
        with pytest.raises(ValueError, match=r"vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable\)"):
            Fanout(env)
    finally:
        env.close()


def test_envs_on_a_screen_are_refused() -> None:
    with pytest.raises(ValueError, match="Received an env with render_mode='human'"):
        Fanout(DummyVecEnv([lambda: FragileWalk("human")]))
    with pytest.raises(ValueError, match="render_mode='human'"):
        Fanout(VecMonitor(DummyVecEnv([lambda: FragileWalk("human")])))


def test_other_vec_envs_are_refused() -> None:
    class Other(VecEnv):
        render_mode = None

        def __init__(self) -> None:
            self.num_envs = 1

        def _nothing(self, *args: Any, **kwargs: Any) -> Any: ...

        reset = step_async = step_wait = close = get_attr = set_attr = env_method = env_is_wrapped = _nothing

    with pytest.raises(ValueError, match=r"Received a Other, in which no siblings.*DummyVecEnv or a SubprocVecEnv"):
        Fanout(Other())


def test_batches_have_the_dtypes_of_the_vec_env(processes: SubprocVecEnv) -> None:
    for env in (DummyVecEnv([FragileWalk] * 3), processes):
        fanout = Fanout(env)
        env.reset()
        observations, rewards, *_ = env.step(np.ones(3, dtype=int))
        assert isinstance(observations, np.ndarray)
        steps = _step(fanout, [[1, 1, 1]], forks=True)
        assert fanout.stacked([one.observations[0] for one in steps]).dtype == observations.dtype
        assert np.array([one.rewards[0] for one in steps], fanout.dtype_of_rewards).dtype == rewards.dtype
