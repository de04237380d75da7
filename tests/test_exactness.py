"""Before the training it is shown that siblings of the very env are exact, copies or else forks."""

import functools
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, check_branching
from sb3_hybrid_grpo.branching import exactness, make_branchable, register_copier, sibling
from sb3_hybrid_grpo.branching.exactness import RandomActions, difference, trajectory_of
from sb3_hybrid_grpo.branching.forked_env import Fork
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper, SiblingSteps
from sb3_hybrid_grpo.errors import BranchingError
from tests import outside_envs
from tests.stateful_envs import STATES, Noisy, noisy, play
from tests.toy_envs import walk
from tests.typed_envs import TYPES, env_with

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


def checked(env: gym.Env[Any, Any]) -> BranchingWrapper:
    """The branchable env, reset and checked."""
    branching = make_branchable(env)
    assert isinstance(branching, BranchingWrapper)
    branching.reset(seed=3)
    failure = branching.check_siblings()
    if failure is not None:
        raise failure.error
    return branching


def lives_as_twins_do(make: Callable[[], gym.Env[Any, Any]], horizon: int) -> str:
    """
    Live with two siblings, and compare all members with envs in processes where nobody branched.

    :return: What the siblings are
    """
    env = TimeLimit(make(), 7)
    env.reset(seed=3)
    env.action_space.seed(0)
    branching = checked(env)
    maker = branching.sibling_maker
    twins = [Fork(functools.partial(_play_with, env, maker.streams)) for _ in range(3)]
    rng = np.random.default_rng(0)
    lives: list[list[Any]] = [[], [], []]
    saw: list[list[Any]] = [[], []]
    ended = np.zeros(2, bool)
    for t in range(2 * horizon):
        actions = rng.integers(3, size=3).tolist()
        if t == horizon:  # the second fork is the last, and the siblings' lives begin with member 0's
            lives[1], lives[2], saw, ended = list(lives[0]), list(lives[0]), [[], []], np.zeros(2, bool)
        steps = branching.step_siblings(np.array(actions[1:]), [t % horizon == 0] * 2)
        assert isinstance(steps, SiblingSteps), steps.error
        for m in range(2):
            if not ended[m]:
                lives[m + 1].append(actions[m + 1])
                seen = np.asarray(steps.observations[m]).tolist()
                saw[m].append((seen, steps.rewards[m], steps.terminated[m], steps.truncated[m]))
                ended[m] = steps.terminated[m] or steps.truncated[m]
        lives[0].append(actions[0])
        own = play(branching, actions[:1])
    assert twins[0].call(lives[0])[-len(own) :] == own
    for m in range(2):
        truth = twins[m + 1].call(lives[m + 1])
        assert (truth[:-1] if ended[m] else truth)[-len(saw[m]) :] == saw[m]
    return "forked" if maker.forks else "copied"


def _play_with(env: Any, streams: Any, actions: list[Any]) -> list[Any]:
    if streams is None:
        return play(env, actions)
    with streams:
        return play(env, actions)


@pytest.mark.parametrize("make", outside_envs.COPIED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("horizon", [1, 4])
def test_state_in_the_env_and_shared_generators_are_copied(make: Callable[[], gym.Env[Any, Any]], horizon: int) -> None:
    assert lives_as_twins_do(make, horizon) == "copied"


@pytest.mark.parametrize("make", outside_envs.FORKED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("horizon", [1, 4])
def test_state_outside_of_the_env_is_forked(make: Callable[[], gym.Env[Any, Any]], horizon: int) -> None:
    with pytest.warns(
        UserWarning, match=r"is a process forked from the env's, and a fork takes milliseconds.*cannot be used: "
    ):
        assert lives_as_twins_do(make, horizon) == "forked"


@pytest.mark.parametrize("make", outside_envs.REFUSED, ids=lambda one: one.__name__)
def test_what_no_process_has_of_its_own_is_refused(make: Callable[[], gym.Env[Any, Any]]) -> None:
    with pytest.raises(BranchingError, match=r"cannot be branched: .*n_samples=1"):
        model = HybridGRPO("MlpPolicy", TimeLimit(make(), 9), branch_horizon=4, **SMALL)
        model.learn(16)


def test_memory_of_a_file_outside_of_the_env_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BranchingError, match=r"cannot be branched: its code uses .*'s variable table, which forked"):
        HybridGRPO("MlpPolicy", TimeLimit(outside_envs.mapped_global(tmp_path), 9), branch_horizon=4, **SMALL).learn(16)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (outside_envs.Counting, "Counting.steps"),
        (outside_envs.module_global_unseen, "playing changes tests.outside_envs.COUNT, outside of the env"),
        (outside_envs.class_attribute_unseen, "playing changes tests.outside_envs.Part.made, "),
        (outside_envs.default_unseen, "playing changes tests.outside_envs._count's default 0, "),
        (outside_envs.variable_unseen, "_counter.<locals>.count's variable n, outside of the env"),
        (outside_envs.class_of_its_own, "playing changes tests.outside_envs.Settings.level, "),
        (outside_envs.tool_of_a_class_made_in_a_function, "Tool, a class made in a function, whose methods use the "),
        (outside_envs.enum_member, "playing changes "),
        (outside_envs.context_variable, "playing changes tests.outside_envs.LEVEL, "),
        (outside_envs.environment_variable, "playing changes os.environ, "),
        (outside_envs.memoised_noise, "played the same actions differently: "),
        (outside_envs.Wins, "playing changes tests.outside_envs.WINS, "),
        (outside_envs.by_identity, "played the same actions differently: observation[1]: "),
        (outside_envs.generator, "Noisy.noise is a generator"),
        (outside_envs.generator_in_a_queue, "an object in Noisy.jobs is a generator"),
        (outside_envs.ctypes_structure, "Noisy.point is a "),
    ],
)
def test_why_there_are_forks_is_named(
    make: Callable[[], gym.Env[Any, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactness, "SECONDS", 30.0)  # on a busy machine, too
    maker = checked(make()).sibling_maker
    assert maker.forks and name in "; ".join(maker.reasons)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (outside_envs.thread, "Noisy.worker is or has a thread"),
        (outside_envs.executor, "Noisy.workers is or has a thread"),
        (outside_envs.mapped, "Noisy.memory is memory that forked"),
    ],
)
def test_what_is_refused_by_its_type_is_named_at_once(make: Any, path: str) -> None:
    with pytest.raises(BranchingError, match=path):
        make_branchable(make())


def test_a_difference_of_the_envs_own_is_no_reason_to_fork() -> None:
    with pytest.warns(UserWarning, match=r"reads a clock, or draws random numbers without a seed.*Draw from self\.np_random"):
        assert not checked(outside_envs.clock()).sibling_maker.forks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        branching = checked(outside_envs.Unseeded())  # in its reset alone
    assert not branching.sibling_maker.forks


@pytest.mark.parametrize(
    ("fault", "text"),
    [("clock", "reads a clock"), ("generator", "Each sibling of"), ("error", "could not be checked")],
)
def test_one_notice_for_all_envs_of_a_class(fault: str, text: str) -> None:
    class Faulty(Noisy):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.actions = (action for action in range(9)) if fault == "generator" else None
            self.played = 0
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            self.played += 1
            if fault == "error" and self.played > 20:
                raise RuntimeError("played for too long")
            return super().step(action)[0], time.perf_counter() if fault == "clock" else 0.0, False, False, {}

    with pytest.warns(UserWarning, match=text) as told:
        HybridGRPO("MlpPolicy", DummyVecEnv([Faulty] * 2), n_steps=16, batch_size=16, branch_horizon=16).learn(16)
    assert len([one for one in told if text in str(one.message)]) == 1


@pytest.mark.parametrize("make", [outside_envs.LazySpace, outside_envs.NoSeed, outside_envs.LazyGenerator])
def test_generators_that_are_made_when_they_are_needed(make: Any) -> None:
    env = make()
    assert not checked(env).sibling_maker.forks
    model = HybridGRPO("MlpPolicy", env, n_samples=3, branch_horizon=4, **SMALL)
    assert model.learn(32).num_timesteps >= 32


@pytest.mark.parametrize("make", [*map(noisy, STATES), lambda: gym.make("CartPole-v1"), lambda: gym.make("Blackjack-v1")])
def test_an_env_is_not_disturbed(make: Callable[[], gym.Env[Any, Any]]) -> None:
    env, twin = make(), make()
    for one in (env, twin):
        one.reset(seed=3)
        one.action_space.seed(0)
    branching = make_branchable(env)
    branching.get_wrapper_attr("check_siblings")()
    actions = [t % 2 for t in range(20)]
    assert play(branching, actions) == play(twin, actions)


@pytest.mark.parametrize("name", TYPES)
def test_objects_of_every_type_pass(name: str) -> None:
    assert not checked(env_with(TYPES[name])).sibling_maker.forks


def test_the_verdict_is_always_the_same() -> None:
    verdicts = {(found.engine, found.reasons) for found in (check_branching(outside_envs.closures()) for _ in range(5))}
    assert verdicts == {("copied", ())}


def test_a_notice_never_raises() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked(TimeLimit(outside_envs.generator(), 9)).step_siblings([1], [True])


def test_a_slow_env_takes_a_few_seconds_with_a_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    check_branching(outside_envs.Slow())
    assert time.perf_counter() - start < 10
    assert "Checking siblings of <Slow instance> [" in capsys.readouterr().err


def test_it_takes_no_time() -> None:
    env = checked(gym.make("CartPole-v1"))
    assert not env.sibling_maker.forks
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert env.check_siblings() is None
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5


def test_what_the_env_itself_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="the env raised ValueError: broken when it played random actions"):
        assert not checked(outside_envs.Raises()).sibling_maker.forks
    assert "it raised ValueError: broken" in str(check_branching(outside_envs.Raises()))


def test_a_crash_does_not_reach_the_env() -> None:
    process = os.getpid()
    env = Noisy(lambda env: os._exit(7) if os.getpid() != process else 0.0)
    with pytest.raises(BranchingError, match="died with exit code 7"):
        checked(env)


class LateEntropy(Noisy):
    """Its first reset without a seed, after the first plan, takes fresh entropy; so does no step."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.start = 0.0 if seed is not None else float(np.random.default_rng().normal())
        observation, info = super().reset(seed=seed)
        return observation + self.start, info


def test_steps_are_compared_also_where_resets_differ() -> None:
    env = LateEntropy(lambda one: Late.count(one))
    with pytest.warns(UserWarning, match="is a process forked"):
        maker = checked(env).sibling_maker
        maker()
    assert "Late.n" in maker.reasons[0]


class Late:
    """Counts all steps of all envs."""

    n = 0

    @classmethod
    def count(cls, env: Any) -> float:
        cls.n += 1
        return float(cls.n)


class Total:
    """Adds up; a registered function copies it without its sum."""

    def __init__(self) -> None:
        self.sum = 0.0


class PaysAtTheEnd(gym.Wrapper[Any, Any, Any, Any]):
    """Pays all rewards at the end of an episode."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.total = Total()

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total.sum += float(reward)
        return observation, self.total.sum if terminated or truncated else 0.0, terminated, truncated, info


def test_a_difference_at_the_end_of_an_episode_is_found() -> None:
    register_copier(f"{__name__}.Total", lambda _: Total())
    with pytest.warns(UserWarning, match="is a process forked"):
        maker = checked(PaysAtTheEnd(TimeLimit(walk(max_steps=10**6), 70))).sibling_maker
        maker()
    assert "reward" in maker.reasons[0]


class LateClock(Noisy):
    """Reads a clock, but only late in an episode."""

    def step(self, action: Any) -> Any:
        self.n += 1
        observation, *_ = super().step(action)
        return observation, time.perf_counter() if self.n > 60 else 0.0, False, False, {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.n = 0
        return super().reset(seed=seed)


def test_an_env_of_which_only_late_steps_differ_keeps_copies() -> None:
    with pytest.warns(UserWarning, match="reads a clock"):
        assert not checked(TimeLimit(LateClock(), 90)).sibling_maker.forks


class OwnSpec(Noisy):
    """Has a ``spec`` of its own, of another kind than gymnasium's, which a step changes."""

    def __init__(self) -> None:
        super().__init__(lambda env: self.spec["wear"])
        self.spec: Any = {"wear": 0.0}

    def step(self, action: Any) -> Any:
        self.spec["wear"] += 1
        return super().step(action)


def test_an_env_may_call_something_of_its_own_spec() -> None:
    assert not checked(OwnSpec()).sibling_maker.forks
    assert check_branching(OwnSpec()).engine == "copied"


def _count_and_break(env: Any) -> float:
    env.steps = getattr(env, "steps", 0) + 1
    if env.steps % 3 == 0:
        raise ValueError("broken")
    return Late.count(env)


def test_a_difference_is_found_in_an_env_that_raises() -> None:
    with pytest.warns(UserWarning, match="the env raised ValueError: broken"):
        maker = checked(Noisy(_count_and_break)).sibling_maker
    assert "Late.n" in maker.reasons[0]


def test_a_model_of_mujoco_that_the_env_changes_is_copied() -> None:
    pytest.importorskip("mujoco")

    class Heavier(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            self.unwrapped.model.body_mass[1] *= 1.05  # type: ignore[attr-defined]
            return super().step(action)

    maker = checked(Heavier(gym.make("HalfCheetah-v5"))).sibling_maker
    assert maker.own_models and not maker.forks
    assert not checked(gym.make("HalfCheetah-v5")).sibling_maker.own_models


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sibling, "examine", None)
    model = HybridGRPO("MlpPolicy", walk(action_space=spaces.Discrete(2)), branching_check=False, branch_horizon=4, **SMALL)
    assert model.learn(16).num_timesteps >= 16
    model.branching_check = True
    with pytest.raises(BranchingError, match="'NoneType' object is not callable"):  # it is checked now
        model.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("horizon", [1, 4, "episode", "auto"])
@pytest.mark.filterwarnings("ignore:Each sibling of")
def test_training_with_forks(horizon: Any) -> None:
    model = HybridGRPO("MlpPolicy", TimeLimit(outside_envs.generator(), 9), branch_horizon=horizon, **SMALL)
    assert model.learn(64).num_timesteps >= 64


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
        ([step(0)], [step(0), step(1)], "the episode ended at step 1 in one play"),
        ([step(0), {"observation after a reset": 1}], [step(0), step(1)], "the episode ended at step 1 in one play"),
        ([step(0)], [{"exception": "ValueError()"}], "it raised ValueError() at step 1"),
        ([{"exception": "ValueError()"}], [step(0)], "it raised ValueError() at step 1"),
        ([step(0), {"exception": "ValueError()"}], [step(0), {"exception": "ValueError()"}], None),
    ],
)
def test_differences(truth: Any, again: Any, message: str | None) -> None:
    found = difference(truth, again)
    assert found is None if message is None else message in str(found)


def test_a_play_ends_with_the_episode() -> None:
    env = walk(max_steps=3)
    env.reset(seed=0)
    seen = trajectory_of(env, RandomActions(env), 8)
    assert len(seen) <= 3 and (seen[-1]["terminated"] or seen[-1]["truncated"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("space", [spaces.Discrete(3, start=5), spaces.MultiDiscrete([3, 3], start=[5, -4])])
def test_actions_are_counted_from_0_as_those_of_a_policy(space: Any, masked: bool) -> None:
    env = walk(action_space=space)
    if masked:
        env.unwrapped.action_masks = lambda: np.ones(3 if isinstance(space, spaces.Discrete) else 6)  # type: ignore[attr-defined]
    actions = RandomActions(env)
    drawn = [actions(env) for _ in range(40)]
    assert {number for action in drawn for number in np.atleast_1d(action).tolist()} == {0, 1, 2}


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)])
def test_actions_are_valid_ones_and_the_same_for_the_same_seed(space: Any) -> None:
    env = walk(action_space=space)
    env.unwrapped.action_masks = lambda: np.array([0, 1, 1, 1], dtype=bool)  # type: ignore[attr-defined]
    one, other = RandomActions(env, 3), RandomActions(env, 3)
    drawn = [np.array(one(env)).tolist() for _ in range(60)]
    assert drawn == [np.array(other(env)).tolist() for _ in range(60)]
    assert sorted(set(map(str, drawn))) == (["1", "2", "3"] if isinstance(space, spaces.Discrete) else ["[1, 0]", "[1, 1]"])


@pytest.mark.parametrize("late", [12, 25, 33])
@pytest.mark.filterwarnings("error")
def test_an_object_that_turns_up_where_no_sibling_forks_is_no_matter(late: int) -> None:
    class Odd(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
        odd: Any

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.t, self.odd = 0, None
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.t += 1
            self.odd = (one for one in range(9)) if self.t == late else self.odd
            return np.zeros(1, np.float32), float(self.np_random.normal()), False, False, {}

    model = HybridGRPO("MlpPolicy", TimeLimit(Odd(), 60), **{**SMALL, "n_steps": 64})
    assert model.learn(256).rollout_buffer.n_samples == 4
