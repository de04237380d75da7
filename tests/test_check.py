"""Before the training it is shown that siblings of the very env are exact, by the next engine if not by the first."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import InPlaceEngine, make_branchable
from sb3_hybrid_grpo.branching.answers import SiblingFailure
from sb3_hybrid_grpo.branching.check import Finding, find_difference
from sb3_hybrid_grpo.branching.copies import EnvCopy
from sb3_hybrid_grpo.branching.forks import Fork
from sb3_hybrid_grpo.branching.outside import LARGEST, outside_values
from sb3_hybrid_grpo.errors import BranchingError
from tests import outside_envs
from tests.stateful_envs import STATES, Noisy, noisy, play

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


def live(make: Callable[[], gym.Env[Any, Any]], horizon: int) -> str:
    """
    Live with two siblings, and compare all members with envs in processes where nobody branched.

    :return: The engine's name
    """
    env = TimeLimit(make(), 7)
    env.reset(seed=3)
    twins = [Fork(lambda actions: play(env, actions)) for _ in range(3)]
    branching: Any = make_branchable(env)
    assert branching.check_siblings(False) is None
    rng = np.random.default_rng(0)
    lives: list[list[Any]] = [[], [], []]
    saw: list[list[Any]] = [[], []]
    ended = np.zeros(2, bool)
    for t in range(2 * horizon):
        actions = rng.integers(3, size=3).tolist()
        if t == horizon:  # the second fork is the last, and the siblings' lives begin with member 0's
            lives[1], lives[2], saw, ended = list(lives[0]), list(lives[0]), [[], []], np.zeros(2, bool)
        steps = branching.step_siblings(np.array(actions[1:]), np.full(2, t % horizon == 0), horizon > 1)
        assert not isinstance(steps, SiblingFailure), steps
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
    name: str = branching.branching_engine.name
    return name


@pytest.mark.parametrize("make", outside_envs.IN_PLACE)
def test_state_in_the_env_is_branched_in_place(make: Callable[[], gym.Env[Any, Any]]) -> None:
    assert live(make, 4) == "in place"


@pytest.mark.parametrize("make", outside_envs.FORKED)
@pytest.mark.parametrize("horizon", [1, 4])
def test_state_outside_of_the_env_is_branched_by_forks(make: Callable[[], gym.Env[Any, Any]], horizon: int) -> None:
    with pytest.warns(UserWarning, match=r"is a process, forked from the env's.*µs with a first step.*in place: "):
        assert live(make, horizon) == "forked"


@pytest.mark.parametrize("make", outside_envs.REFUSED)
def test_what_no_engine_can_branch_is_refused(make: Callable[[], gym.Env[Any, Any]]) -> None:
    model = HybridGRPO("MlpPolicy", TimeLimit(make(), 9), branch_horizon=4, **SMALL)
    with pytest.raises(BranchingError) as caught:
        model.learn(16)
    assert model.num_timesteps == 0
    for part in (
        "<TimeLimit<Noisy instance>>",
        "in place: put back to",
        "forked: in a fork",
        "observation[1]: ",
        "at step 1",
        "n_samples=1",
    ):
        assert part in str(caught.value)


def test_a_thread_is_refused_at_once() -> None:
    with pytest.raises(BranchingError, match=r"Noisy\.worker holds a threading\.Thread"):
        make_branchable(outside_envs.thread())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (outside_envs.Counting, "Counting.steps"),
        (outside_envs.global_numpy, "observation[1]"),
        (outside_envs.global_draws_unseen, "draws from random, "),
        (outside_envs.module_global_unseen, "playing changes tests.outside_envs.COUNT, outside of the env"),
        (outside_envs.class_attribute_unseen, "playing changes tests.outside_envs.Part.made, "),
        (outside_envs.module_generator_unseen, "playing changes tests.outside_envs.GENERATOR, "),
        (outside_envs.default_unseen, "playing changes tests.outside_envs._count's defaults, "),
        (outside_envs.variable_unseen, "_counter.<locals>.count's variable n, outside of the env"),
    ],
)
def test_what_differs_is_named(make: Callable[[], gym.Env[Any, Any]], name: str) -> None:
    env = make()
    env.reset(seed=0)
    assert name in str(find_difference(env, InPlaceEngine(env), resets=False).difference)


def test_what_a_reset_changes_outside_of_the_env_counts_where_siblings_reset() -> None:
    env = outside_envs.Resets()
    env.reset(seed=0)
    assert find_difference(env, InPlaceEngine(env), resets=False) == Finding()
    found = find_difference(env, InPlaceEngine(env), resets=True)
    assert found.difference == "playing changes tests.outside_envs.Resets.episodes, outside of the env"


@pytest.mark.parametrize(("module", "is_library"), [("mujoco", True), ("mujoco.viewer", True), ("mujoco_walker", False)])
def test_a_module_is_a_librarys_by_its_whole_name(module: str, is_library: bool) -> None:
    code = type("Code", (), {"__module__": module, "kept": 1})
    assert (f"{module}.Code.kept" not in outside_values([code])) == is_library


def test_large_tables_of_a_module_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    code = InPlaceEngine(outside_envs.module_global()).code()
    assert "tests.outside_envs.COUNT" in outside_values(code)
    monkeypatch.setattr(outside_envs, "COUNT", np.zeros(LARGEST))
    assert "tests.outside_envs.COUNT" not in outside_values(code)


@pytest.mark.parametrize("make", [*map(noisy, STATES), lambda: gym.make("CartPole-v1"), lambda: gym.make("Blackjack-v1")])
@pytest.mark.parametrize("resets", [False, True])
def test_an_env_is_not_disturbed(make: Callable[[], gym.Env[Any, Any]], resets: bool) -> None:
    env, twin = make(), make()
    for one in (env, twin):
        one.reset(seed=1)
        one.action_space.seed(0)  # some envs draw from it
    assert find_difference(env, InPlaceEngine(env), resets) == Finding()
    actions = [t % 2 for t in range(20)]
    assert play(env, actions) == play(twin, actions)


@pytest.mark.parametrize("make", [*map(noisy, STATES), lambda: gym.make("CartPole-v1")])
def test_without_forks_the_check_is_made_in_place(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_hybrid_grpo.branching.check.can_fork", lambda: False)
    monkeypatch.setattr("sb3_hybrid_grpo.branching.choice.can_fork", lambda: False)
    test_an_env_is_not_disturbed(make, True)
    branching: Any = make_branchable(outside_envs.Counting())
    branching.reset(seed=0)
    failure = branching.check_siblings(False)
    assert failure.refused and "in place: put back to" in failure.error and "forked" not in failure.error
    with pytest.raises(BranchingError, match=r"Noisy\.noise holds a builtins\.generator"):
        make_branchable(outside_envs.generator())


class Crashes(Noisy):
    """Ends the process when it is stepped from a place where it has been."""

    visited: set[float] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(self._crash)

    def _crash(self, env: Any) -> float:
        if self.x in self.visited:
            import os

            os._exit(7)
        self.visited.add(self.x)
        return 0.0


def test_a_crash_does_not_reach_the_env() -> None:
    env = Crashes()
    env.reset(seed=0)
    assert "died with exit code 7" in str(find_difference(env, InPlaceEngine(env), resets=False).difference)
    assert not env.visited


def test_a_hanging_fork_leaves_the_check_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_hybrid_grpo.branching.check.ANSWER_WITHIN", 0.3)
    import os

    process = os.getpid()

    def wait(env: Any) -> float:
        if os.getpid() != process:
            time.sleep(5)
        return 0.0

    env = Noisy(wait)
    env.reset(seed=0)
    assert find_difference(env, InPlaceEngine(env), resets=False) == Finding()


def by_identity() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.n += 1
        return float(env.table.get(id(env.part), 0.0) if env.n > 6 else 0.0)

    env: Any = Noisy(change)
    env.n, env.part = 0, [1.0]
    env.table = {id(env.part): 5.0}
    return TimeLimit(env, 30)


def test_copies_that_differ_after_some_steps_are_not_used() -> None:
    branching: Any = make_branchable(by_identity())
    branching.reset(seed=0)
    steps = branching.step_siblings(np.array([1]), np.ones(1, bool), True)
    assert isinstance(branching.siblings_beside[0], EnvCopy), steps  # a few steps show nothing
    branching = make_branchable(by_identity())
    branching.reset(seed=0)
    assert branching.check_siblings(False) is None
    assert len(branching.step_siblings(np.array([1]), np.ones(1, bool), True).rewards) == 1
    assert not branching.siblings_beside and not branching.siblings_are_copied


def test_it_takes_no_time() -> None:
    model = HybridGRPO("MlpPolicy", "CartPole-v1", **SMALL)
    assert model.env is not None
    model.env.reset()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert model.env.env_method("check_siblings", True) == [None]
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_it_can_be_switched_off() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = HybridGRPO(
            "MlpPolicy", TimeLimit(outside_envs.global_draws_unseen(), 9), branching_check=False, branch_horizon=4, **SMALL
        )
        assert model.learn(16).num_timesteps == 16


@pytest.mark.parametrize("horizon", [1, 4, "free", "auto"])
@pytest.mark.filterwarnings("ignore:Each sibling of")
def test_training_with_forks(horizon: Any) -> None:
    model = HybridGRPO("MlpPolicy", TimeLimit(outside_envs.generator(), 9), branch_horizon=horizon, **SMALL).learn(32)
    assert model.num_simulator_steps == 128
