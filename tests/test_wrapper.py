"""Siblings step beside an env, below its recorders, and leave it where it was."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import check_branching, make_branchable
from sb3_hybrid_grpo.branching import fork_env, wrapper_chain
from sb3_hybrid_grpo.branching.exactness import difference, shown
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper, SiblingFailure, SiblingSteps
from sb3_hybrid_grpo.branching.wrapper_chain import generator_of, set_generator
from tests import outside_envs
from tests.stateful_envs import Noisy


class Walk(gym.Env[Any, Any]):
    """A random walk that ends beyond 3, breaks down at action 7, is interrupted at action 8, and returns its own buffer."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = spaces.Discrete(9)
        self.buffer = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.buffer[:] = self.np_random.normal(), 0
        return self.buffer, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.buffer[1] += 1
        self.buffer[0] += 0.2 * action + self.np_random.normal()
        if action == 7:
            raise ZeroDivisionError("the action was 7")
        if action == 8:
            raise KeyboardInterrupt
        return self.buffer, float(self.buffer[0]), bool(self.buffer[0] > 3), False, {}


class Skipping(gym.Wrapper[Any, Any, Any, Any]):
    """Takes two steps for one."""

    def step(self, action: Any) -> Any:
        first = self.env.step(action)
        return first if first[2] or first[3] else self.env.step(action)


def _step(env: gym.Env[Any, Any], actions: list[int], forks: bool = True, **options: Any) -> SiblingSteps | SiblingFailure:
    result: SiblingSteps | SiblingFailure = env.get_wrapper_attr("step_siblings")(
        np.array(actions), [forks] * len(actions), **options
    )
    return result


def _layers(env: gym.Env[Any, Any]) -> list[type]:
    layers = [type(env)]
    while isinstance(env, gym.Wrapper):
        env = env.env
        layers.append(type(env))
    return layers


def test_it_goes_below_recorders_and_above_all_else() -> None:
    env = make_branchable(Monitor(RecordEpisodeStatistics(TimeLimit(Walk(), 5))))
    assert _layers(env) == [Monitor, RecordEpisodeStatistics, BranchingWrapper, TimeLimit, Walk]
    assert _layers(make_branchable(Skipping(Monitor(Walk())))) == [BranchingWrapper, Skipping, Monitor, Walk]
    assert _layers(make_branchable(Walk())) == [BranchingWrapper, Walk]


def test_a_branchable_env_is_left_as_it_is() -> None:
    for env in (make_branchable(Walk()), make_branchable(Monitor(Walk())), TimeLimit(make_branchable(Walk()), 3)):
        before = _layers(env)
        assert make_branchable(env) is env
        assert _layers(env) == before


@pytest.mark.parametrize("deep", [False, True])
def test_a_monitor_writes_down_member_0_alone(tmp_path: Path, deep: bool) -> None:
    def make(name: str) -> gym.Env[Any, Any]:
        monitor: gym.Env[Any, Any] = Monitor(TimeLimit(Walk(), 12), str(tmp_path / name))
        return Skipping(monitor) if deep else monitor

    env, twin = make_branchable(make("env")), make("twin")
    env.reset(seed=1)
    twin.reset(seed=1)
    rng = np.random.default_rng(0)
    for t in range(150):
        _step(env, rng.integers(6, size=3).tolist(), forks=t % 4 == 0)
        got, expected = env.step(1), twin.step(1)
        np.testing.assert_array_equal(got[0], expected[0])
        assert got[1:4] == expected[1:4]
        if got[2] or got[3]:
            env.reset()
            twin.reset()
    env.close()
    twin.close()
    # the last column is the time of day
    rows = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / f"{n}.monitor.csv").read_text().splitlines()[1:]]
        for n in ("env", "twin")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 5


class Bonus(gym.Wrapper[Any, Any, Any, Any]):
    """Pays for a finished episode, which the Monitor below reports."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + 1000 * ("episode" in info), terminated, truncated, info


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("recorder", [Monitor, RecordEpisodeStatistics])
def test_siblings_have_the_recorders_that_a_wrapper_may_read(recorder: Any, forked: bool, tmp_path: Path) -> None:
    file = str(tmp_path / "env") if recorder is Monitor else None
    inner = TimeLimit(Walk(), 12)
    env = make_branchable(Bonus(recorder(inner) if file is None else Monitor(inner, file)))
    written = Path(f"{file}.monitor.csv").read_text() if file else ""
    env.reset(seed=1)
    env.get_wrapper_attr("check_siblings")()
    maker = env.get_wrapper_attr("sibling_maker")
    assert not maker.forks
    maker.forks = forked
    for t in range(12):
        steps = _step(env, [1, 1], forks=t == 0)
        assert isinstance(steps, SiblingSteps)
        ended = steps.terminated[0] or steps.truncated[0]
        assert steps.rewards[0] == steps.rewards[1] and (steps.rewards[0] > 500) == ended
        assert not any("episode" in info for info in steps.infos)
        if ended:
            break
    else:
        raise AssertionError("no episode has ended")
    assert not file or Path(f"{file}.monitor.csv").read_text() == written
    env.close()


def test_a_wrapper_made_directly_around_a_monitor_passes_it_by() -> None:
    monitor = Monitor(Walk())
    env = BranchingWrapper(monitor)
    env.reset(seed=0)
    _step(env, [1, 2])
    assert monitor.rewards == []
    assert env.env is monitor
    env.step(1)
    assert len(monitor.rewards) == 1


def test_siblings_of_one_action_live_through_the_same_noise() -> None:
    env, twin = make_branchable(Walk()), Walk()
    env.reset(seed=0)
    twin.reset(seed=0)
    for t in range(5):
        steps = _step(env, [1, 1, 4], forks=t == 0)
        assert isinstance(steps, SiblingSteps)
        truth = [a.copy() if isinstance(a, np.ndarray) else a for a in twin.step(1)]
        for member in (0, 1):
            np.testing.assert_array_equal(steps.observations[member], truth[0])
        assert steps.rewards[0] == truth[1] == pytest.approx(steps.rewards[2] - 0.6 * (t + 1))
    assert env.unwrapped.buffer[1] == 0  # type: ignore[attr-defined]


def test_observations_survive_an_env_that_returns_its_buffer() -> None:
    env = make_branchable(Walk())
    env.reset(seed=0)
    steps = _step(env, [0, 5])
    assert isinstance(steps, SiblingSteps)
    assert steps.observations[1][0] - steps.observations[0][0] == pytest.approx(1.0)
    first = steps.observations[0].copy()
    env.step(3)
    np.testing.assert_array_equal(steps.observations[0], first)


def test_an_error_of_a_sibling_is_returned_with_its_member() -> None:
    env, twin = make_branchable(Skipping(Monitor(Walk()))), Skipping(Monitor(Walk()))
    env.reset(seed=0)
    twin.reset(seed=0)
    failure = _step(env, [1, 7, 1])
    assert isinstance(failure, SiblingFailure)
    assert failure.member == 2
    assert "the action was 7" in str(failure.error)
    assert "in step" in failure.traceback
    with pytest.raises(KeyboardInterrupt):
        _step(env, [1, 8])
    np.testing.assert_array_equal(env.step(2)[0], twin.step(2)[0])
    assert _layers(env) == [BranchingWrapper, *_layers(twin)]
    assert isinstance(_step(env, [1, 1]), SiblingSteps)


def test_what_arrives_later_sends_siblings_to_forks() -> None:
    env = make_branchable(Walk())
    env.reset(seed=0)
    assert isinstance(_step(env, [1, 2]), SiblingSteps)
    inner: Any = env.unwrapped
    inner.generator = (n for n in range(3))
    with pytest.warns(UserWarning, match=r"is a process forked .*Walk\.generator is a generator"):
        steps = _step(env, [1, 2])
    assert isinstance(steps, SiblingSteps)
    assert [one.kind for one in vars(env)["_BranchingWrapper__siblings"].values()] == ["forked"] * 2
    np.testing.assert_array_equal(env.step(1)[0], steps.observations[0])
    env.close()


class Late(Noisy):
    """Keeps state where no copy has its own, and shows it after so many steps."""

    counts = [0]  # noqa: RUF012

    def __init__(self, after: int) -> None:
        super().__init__(self._late)
        self.n, self.after = 0, after

    def _late(self, env: Any) -> float:
        self.n += 1
        if self.n < self.after:
            return 0.0
        self.counts[0] += 1
        return self.counts[0]


def test_the_watch_finds_what_shows_late() -> None:
    env = make_branchable(Late(20))
    env.reset(seed=0)
    env.get_wrapper_attr("check_siblings")()
    maker = env.get_wrapper_attr("sibling_maker")
    maker.forks = False  # whatever the check has found
    for t in range(16):
        _step(env, [0, 1], forks=t % 8 == 0)
        env.step(0)
    assert not maker.forks
    with pytest.warns(
        UserWarning, match=r"a copy played the same actions differently: observation\[1\]: .* step \d+ after a fork"
    ):
        for t in range(32):
            _step(env, [0, 1], forks=t % 8 == 0)
            env.step(0)
    env.close()


class LateEnd(Noisy):
    """Keeps state where no copy has its own, and shows it at the end of an episode."""

    counts = [0]  # noqa: RUF012

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.t = length, 0

    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        self.t += 1
        if self.t % self.length:
            return observation, reward, False, False, {}
        self.counts[0] += 1
        return observation, reward + self.counts[0], False, True, {}


@pytest.mark.parametrize("forks_in_an_episode", [1, 3, 5, 6, 7, 9])
def test_the_watch_sees_an_episode_end_however_many_forks_it_has(forks_in_an_episode: int) -> None:
    env = make_branchable(LateEnd(4 * forks_in_an_episode))
    env.reset(seed=0)
    env.get_wrapper_attr("check_siblings")()
    maker = env.get_wrapper_attr("sibling_maker")
    maker.forks, maker.watchable = False, True  # whatever the check has found
    with pytest.warns(UserWarning, match="played the same actions differently: reward: .* step 4 after a fork") as warned:
        for t in range(600):
            _step(env, [0, 1], forks=t % 4 == 0)
            if env.step(0)[3]:
                env.reset()
            if len(warned):
                break
    env.close()


@pytest.mark.parametrize("change", ["method", "set_wrapper_attr", "attribute", "unwrapped"])
def test_who_changes_the_env_does_not_trip_the_watch(change: str) -> None:
    env = make_branchable(TimeLimit(Noisy(lambda one: vars(one)["gain"]), 50))
    inner: Any = env.unwrapped
    inner.gain = 1.0
    inner.set_gain = lambda gain: setattr(inner, "gain", gain)
    env.reset(seed=0)
    _step(env, [0, 1])
    env.step(0)
    if change == "method":
        env.get_wrapper_attr("set_gain")(2.0)
    elif change == "set_wrapper_attr":
        env.set_wrapper_attr("gain", 2.0)
        assert inner.gain == 2.0
    elif change == "attribute":
        env.env.env.gain = 2.0  # type: ignore[attr-defined]
        env.other = 3.0  # type: ignore[attr-defined]
    else:
        env.unwrapped.gain = 2.0  # type: ignore[attr-defined]
    for _ in range(5):
        _step(env, [0, 1], forks=False)
        env.step(0)
    assert not env.get_wrapper_attr("sibling_maker").forks


def test_fork_env_gives_envs_that_go_on_alone() -> None:
    env = TimeLimit(Monitor(Walk()), 12)
    env.reset(seed=0)
    one, other = fork_env(env, 2)
    assert one.kind == "copied" and one.action_space == env.action_space
    for action in (1, 2, 3):
        np.testing.assert_array_equal(one.step(action)[0], other.step(action)[0].copy())
    assert env.env.rewards == []  # type: ignore[attr-defined]
    np.testing.assert_array_equal(one.reset(seed=4)[0], Walk().reset(seed=4)[0])
    with pytest.raises(ValueError, match="n must be"):
        fork_env(env, -1)
    forked = outside_envs.generator()
    forked.reset(seed=0)
    with pytest.warns(UserWarning, match="Noisy.noise is a generator"):
        (sibling,) = fork_env(forked, 1)
    assert sibling.kind == "forked"
    np.testing.assert_array_equal(sibling.step(1)[0], forked.step(1)[0])
    sibling.close()


def test_envs_whose_unwrapped_is_something_else() -> None:
    class Core:
        pass

    class Foreign(Walk):
        @property
        def unwrapped(self) -> Any:
            return Core()

    env = make_branchable(Foreign())
    env.reset(seed=0)
    assert env.get_wrapper_attr("check_siblings")() is None
    assert isinstance(_step(env, [1, 2]), SiblingSteps)
    assert isinstance(env.unwrapped, Core)


@pytest.mark.parametrize("call", [make_branchable, check_branching, lambda env: fork_env(env, 2)])
def test_an_id_is_no_env(call: Any) -> None:
    with pytest.raises(
        TypeError, match=r"must be a gymnasium env, got 'CartPole-v1'\. Make it first: .*make\('CartPole-v1'\)"
    ):
        call("CartPole-v1")
    with pytest.raises(TypeError, match=r"gymnasium env, got <class .*Walk'>\. Make it first: env = MyEnv\(\)"):
        call(Walk)
    with pytest.raises(
        TypeError, match=r"must be a gymnasium env, got <.*DummyVecEnv.*Take one of its envs: env = vec_env.envs"
    ):
        call(DummyVecEnv([Walk]))


def test_that_siblings_are_forks_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        env = outside_envs.generator()
        for _ in range(3):
            for one in fork_env(env, 1):
                one.close()
    assert len([one for one in caught if "is a process" in str(one.message)]) == 1


@pytest.mark.parametrize("make", [outside_envs.NoSeed, outside_envs.LazySpace])
def test_checked_copies_have_the_generator_that_an_env_makes_when_it_first_draws(make: Any) -> None:
    env = make_branchable(make())
    env.reset()
    assert env.get_wrapper_attr("check_siblings")() is None
    plays = [[shown(*one.step(1)) for _ in range(5)] for one in (*fork_env(env, 2), env)]
    assert difference(plays[0], plays[1]) is None and difference(plays[0], plays[2]) is None


def test_an_env_that_looks_whether_it_has_a_generator_begins_as_without_branching() -> None:
    class SeedsItself(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=42 if seed is None and generator_of(self) is None else seed)
            return self.np_random.normal(size=3).astype(np.float32), {}

    alone, branched, copied = SeedsItself(), make_branchable(SeedsItself()), SeedsItself()
    fork_env(copied, 1)
    first = alone.reset()[0]
    np.testing.assert_array_equal(branched.reset()[0], first)
    np.testing.assert_array_equal(copied.reset()[0], first)


def test_one_place_reads_the_private_name_of_a_generator() -> None:
    env = gym.make("CartPole-v1")
    assert generator_of(env.unwrapped) is None and generator_of(env.action_space) is None
    made = np.random.default_rng(0)
    set_generator(env.action_space, made)
    assert generator_of(env.action_space) is env.action_space.np_random is made
    folder = Path(wrapper_chain.__file__).parent
    assert [one.name for one in folder.glob("*.py") if "._np_random" in one.read_text()] == ["wrapper_chain.py"]
