"""Siblings of many envs at once, in one process or in many, and what is said when that cannot be."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor


from sb3_hybrid_grpo.branching.fanout import Fanout

from sb3_hybrid_grpo.branching.stack import stages_of
from sb3_hybrid_grpo.errors import BranchingError
from tests.toy_envs import FragileWalk


def _step(fanout: Fanout, actions: Any, forks: bool, reset_ended: bool = False) -> list[Any]:
    actions = np.asarray(actions)
    shape = actions.shape
    return fanout.step(actions, np.full(shape, forks), np.ones(shape[1], dtype=bool), reset_ended)


def _same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.observations, other.observations)
    assert one[1:4] == other[1:4]
    assert one.resets.keys() == other.resets.keys()
    for key, value in one.resets.items():
        np.testing.assert_array_equal(value, other.resets[key])


@pytest.mark.parametrize("free", [False, True])
def test_one_process_and_many_give_the_same_siblings(processes: SubprocVecEnv, free: bool) -> None:
    dummy = DummyVecEnv([FragileWalk] * 3)
    dummy.seed(4)
    dummy.reset()
    fanouts = Fanout(dummy), Fanout(processes)
    seeds: list[list[int | None]] = [[10, 11], [12, 13], [14, 15]]
    firsts = [fanout.reset(seeds) for fanout in fanouts]
    np.testing.assert_array_equal(firsts[0], firsts[1])
    rng = np.random.default_rng(0)
    for t in range(20):
        actions = rng.integers(6, size=(2, 3))
        one, other = (_step(fanout, actions, forks=not free and t % 5 == 0, reset_ended=free) for fanout in fanouts)
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


class Doubling(VecEnvWrapper):
    """Doubles observations."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, *rest = self.venv.step_wait()
        return (2 * observations, *rest)  # type: ignore[operator]


def test_unknown_vec_env_wrappers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wrapped in Doubling;.*Known VecEnv wrappers: VecCheckNan, .*VecNormalize"):
        stages_of(VecMonitor(Doubling(DummyVecEnv([FragileWalk]))), 1)


def test_a_subclass_of_a_known_wrapper_is_unknown() -> None:
    class Mine(VecMonitor):
        pass

    with pytest.raises(ValueError, match="wrapped in Mine"):
        stages_of(Mine(DummyVecEnv([FragileWalk])), 1)


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
        assert fanout.rewards([one.rewards[0] for one in steps]).dtype == rewards.dtype
