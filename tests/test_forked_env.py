"""Forks answer, end when they are not needed any more, and never hang."""

import os
import random
import signal
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import forked_env, make_branchable
from sb3_hybrid_grpo.branching.forked_env import Fork, ForkedEnv, HungForkError
from sb3_hybrid_grpo.errors import BranchingError
from tests import outside_envs
from tests.stateful_envs import Noisy

pytestmark = pytest.mark.filterwarnings("ignore:Each sibling of")
SMALL: dict[str, Any] = {"n_steps": 48, "batch_size": 8, "n_epochs": 1, "seed": 0}


def is_running(pid: int) -> bool:
    """A process that nobody has waited for yet counts as ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid: int) -> bool:
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_a_fork_goes_on_from_where_the_process_is() -> None:
    numbers = [1]

    def append(number: int) -> tuple[int, float]:
        numbers.append(number)
        return len(numbers), random.random()

    fork = Fork(append)
    state = random.getstate()
    assert fork.call(5)[0] == 2
    assert fork.call(6)[0] == 3
    assert numbers == [1]
    random.setstate(state)
    drawn = [random.random() for _ in range(3)]
    assert fork.call(7)[1] == drawn[2]


def test_a_fork_ends_with_its_object() -> None:
    before = set(children())
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        fork = Fork(os.getpid)
        pid = fork.call()
        assert pid != os.getpid()
    del fork
    assert not is_running(pid)
    assert not set(children()) - before  # no zombies either
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_fork_ends_when_its_parent_is_killed() -> None:
    def nested() -> int:
        outside_envs._KEPT.append(Fork(os.getpid))
        return int(outside_envs._KEPT[-1].call())

    parent = Fork(nested)
    pid = parent.call()
    assert is_running(pid)
    os.kill(parent.pid, signal.SIGKILL)
    assert wait_for_end(pid)


def test_an_error_in_a_fork_comes_back_with_its_traceback_and_the_fork_goes_on() -> None:
    fork = Fork(lambda number: 1 / number)
    with pytest.raises(ZeroDivisionError) as caught:
        fork.call(0)
    assert "1 / number" in str(caught.value.__cause__)
    assert fork.call(2) == 0.5


def test_an_answer_that_cannot_be_pickled_is_an_error_and_the_fork_goes_on() -> None:
    fork = Fork(lambda number: number if number else lambda: 1)
    with pytest.raises(Exception, match=r"(?i)can't (get|pickle)"):
        fork.call(0)
    assert fork.call(2) == 2


@pytest.mark.parametrize(
    ("end", "message"),
    [(lambda: os._exit(3), "died with exit code 3"), (lambda: os.kill(os.getpid(), signal.SIGKILL), "died with signal 9")],
)
def test_a_fork_that_dies(end: Any, message: str) -> None:
    before = set(children())
    fork = Fork(end)
    with pytest.raises(BranchingError, match=message):
        fork.call()
    assert not set(children()) - before


@pytest.mark.parametrize(("draw", "size"), [(th.randn, 500_000), (np.random.standard_normal, 100_000)])
def test_forks_can_draw_while_another_thread_draws(draw: Any, size: int) -> None:
    """A generator that a thread is drawing from stays locked in a fork."""
    ends = threading.Event()

    def draw_and_pause() -> None:
        while not ends.wait(0.005):
            draw(size)

    thread = threading.Thread(target=draw_and_pause)
    thread.start()
    try:
        for _ in range(20):
            assert len(Fork(draw, seconds=5.0).call(3)) == 3
    finally:
        ends.set()
        thread.join()


def test_a_fork_that_can_never_draw_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_env, "_READY_WITHIN", (0.1, 0.1))
    monkeypatch.setattr(np.random, "random_sample", lambda size: time.sleep(60))
    before = set(children())
    with pytest.raises(HungForkError, match=r"has not answered for 0.3 s"):
        Fork(os.getpid, seconds=0.3).call()
    assert not set(children()) - before


def test_a_fork_that_hangs() -> None:
    fork = Fork(time.sleep, seconds=0.2)
    pid = fork.pid
    with pytest.raises(HungForkError, match=r"has not answered for 0\.2 s.*register_copier"):
        fork.call(30)
    assert not is_running(pid)


def test_an_interrupt_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = Fork(lambda number: number)

    def interrupt(seconds: float) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fork.pipe, "poll", interrupt)
        fork.call(1)
    assert fork.call(2) == 2


def test_tensors_after_threads() -> None:
    threads = th.get_num_threads()
    th.set_num_threads(4)
    try:
        weights = th.rand(300, 300)
        expected = (weights @ weights).sum()  # by several threads, which a fork does not have
        found = Fork(lambda: float((weights @ weights).sum()), seconds=20).call()
        np.testing.assert_allclose(found, float(expected), rtol=1e-4)
        assert th.get_num_threads() == 4
    finally:
        th.set_num_threads(threads)


def test_methods_of_the_env_and_its_wrappers() -> None:
    env = Noisy()
    env.action_masks = lambda: [env.x > 0]  # type: ignore[attr-defined]
    env.reset(seed=0)
    sibling = ForkedEnv(TimeLimit(env, 5))
    observation, info = sibling.reset(seed=4)
    assert sibling.get_wrapper_attr("action_masks")() == [observation[0] > 0] and info == {}
    assert sibling.get_wrapper_attr("x")() == observation[0]
    assert env.x != observation[0]


@pytest.mark.parametrize("horizon", [1, 4, "episode"])
def test_closing_the_env_ends_its_siblings(horizon: Any) -> None:
    before = set(children())  # of other tests, and they may end meanwhile
    env = DummyVecEnv([lambda: TimeLimit(outside_envs.generator(), 9)] * 2)
    HybridGRPO("MlpPolicy", env, branch_horizon=horizon, n_samples=3, **SMALL).learn(48)
    assert len(set(children()) - before) in (4, 5, 6)  # an env may be watched by one more
    env.close()
    assert not set(children()) - before


class OddAtReset(Noisy):
    """Makes, when it is reset, an object that no rule copies."""

    def reset(self, **keywords: Any) -> Any:
        self.odd = (n for n in range(9))
        return super().reset(**keywords)


def test_forks_for_an_object_that_a_reset_makes_are_told_before_the_training() -> None:
    with pytest.warns(UserWarning, match=r"trains without siblings, as PPO does.*OddAtReset.*\.odd is a generator") as caught:
        HybridGRPO("MlpPolicy", DummyVecEnv([OddAtReset]), **SMALL).learn(SMALL["n_steps"])
    assert len(caught) == 1


class OddLater(Noisy):
    """Holds, from some step on, an object that no rule copies."""

    def __init__(self) -> None:
        super().__init__(self._become_odd)
        self.t = 0
        self.odd: Any = None

    def _become_odd(self, env: Any) -> float:
        self.t += 1
        self.odd = (_ for _ in range(9)) if self.t == 30 else self.odd
        return 0.0


def test_forks_end_where_groups_are_given_up() -> None:
    before = set(children())
    model = HybridGRPO("MlpPolicy", DummyVecEnv([OddLater] * 2), **{**SMALL, "n_steps": 128})
    model.auto_grouping.see_noise(True)
    with pytest.warns(UserWarning, match="trains without siblings"):
        model.learn(1024)
    assert not set(children()) - before


def test_forks_end_where_a_training_goes_on_with_other_groups() -> None:
    before = set(children())
    model = HybridGRPO("MlpPolicy", TimeLimit(outside_envs.generator(), 9), branch_horizon=4, **SMALL).learn(16)
    assert set(children()) - before
    model.n_samples = 1
    model.learn(16, reset_num_timesteps=False)
    assert not set(children()) - before


@pytest.mark.parametrize("closed", [False, True])
def test_forks_end_where_a_model_gets_another_env(closed: bool) -> None:
    before = set(children())
    first = DummyVecEnv([make])
    model = HybridGRPO("MlpPolicy", first, branch_horizon=4, **SMALL).learn(16)
    if closed:
        first.close()
    model.set_env(DummyVecEnv([make]))
    assert not set(children()) - before
    assert model.learn(16).num_timesteps >= 16


def make() -> gym.Env[Any, Any]:
    return make_branchable(TimeLimit(outside_envs.generator(), 9))


def test_siblings_end_with_the_process_of_their_env() -> None:
    env = SubprocVecEnv([make] * 2, start_method="fork")
    model = HybridGRPO("MlpPolicy", env, branch_horizon="episode", n_samples=3, **SMALL).learn(48)
    pids = []
    for process in env.processes:
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            pids += [int(pid) for pid in file.read().split()]
    assert len(pids) in (4, 5, 6) and all(map(is_running, pids))
    for process in env.processes:
        process.kill()
    assert all(map(wait_for_end, pids))
    with pytest.raises(BranchingError, match="process of env 0 died"):
        model.learn(64, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: 1 / 0, r"At step 13 .* member 1 \(a sibling\) of env 0 failed: .*ZeroDivisionError.*\n.*Traceback"),
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"died with signal 9\..*At step 13 .*, member 1 \(a sibling\) of env 0",
        ),
    ],
)
def test_a_failing_step_of_a_forked_sibling_is_named(fails: Any, message: str) -> None:
    process = os.getpid()

    def change(env: Any) -> float:
        next(env.noise)
        if os.getpid() != process and env.n >= 12:
            fails()
        env.n += 1
        return 0.0

    env: Any = TimeLimit(outside_envs.generator(), 50)
    env.unwrapped.change, env.unwrapped.n = change, 0
    model = HybridGRPO("MlpPolicy", env, branch_horizon=64, branching_check=False, **SMALL)
    with pytest.raises(BranchingError, match=message):
        model.learn(400)
