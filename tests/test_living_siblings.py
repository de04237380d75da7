"""Siblings that live for many steps, forked at different times, each live the life that their own actions give."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo.branching import make_branchable
from tests.stateful_envs import STATES, Noisy, noisy

SIBLINGS, STEPS = 3, 40


def lived(env: gym.Env[Any, Any], history: list[Any]) -> list[Any]:
    """
    Live a life in an env that knows of no siblings.

    :param env: The env
    :param history: A seed for the first reset, then actions; None resets
    :return: All that was seen
    """
    env.action_space.seed(0)  # some envs draw from it
    seen: list[Any] = [np.asarray(env.reset(seed=history[0])[0]).tolist()]
    for action in history[1:]:
        if action is None:
            seen.append(np.asarray(env.reset()[0]).tolist())
        else:
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append((np.asarray(observation).tolist(), float(reward), terminated, truncated))
    return seen


def assert_lives_are_lived(make: Any, actions: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    env = make_branchable(make())
    env.action_space.seed(0)
    step_siblings = env.get_wrapper_attr("step_siblings")
    own: list[Any] = [0]
    seen = [np.asarray(env.reset(seed=0)[0]).tolist()]
    theirs: list[list[Any]] = [[0] for _ in range(SIBLINGS)]
    saw = [list(seen) for _ in range(SIBLINGS)]
    ended = [True] * SIBLINGS
    for _ in range(STEPS):
        forks = np.array(ended) | (rng.random(SIBLINGS) < 0.15)
        for m in np.flatnonzero(forks).tolist():
            theirs[m], saw[m] = list(own), list(seen)
        chosen = [actions(rng) for _ in range(SIBLINGS)]
        steps = step_siblings(np.array(chosen), forks, True)
        for m in range(SIBLINGS):
            theirs[m].append(chosen[m])
            one = (np.asarray(steps.observations[m]).tolist(), steps.rewards[m], steps.terminated[m], steps.truncated[m])
            saw[m].append(one)
            ended[m] = steps.terminated[m] or steps.truncated[m]
        own.append(actions(rng))
        observation, reward, terminated, truncated, _ = env.step(own[-1])
        seen.append((np.asarray(observation).tolist(), float(reward), terminated, truncated))
        if terminated or truncated:
            own.append(None)
            seen.append(np.asarray(env.reset()[0]).tolist())
        for m in range(SIBLINGS):
            if ended[m]:
                assert lived(make(), theirs[m]) == saw[m]
    assert lived(make(), own) == seen
    for m in range(SIBLINGS):
        assert lived(make(), theirs[m]) == saw[m]


@pytest.mark.parametrize("add", STATES)
@pytest.mark.parametrize("seed", range(3))
def test_state_of_every_kind(add: Any, seed: int) -> None:
    make = noisy(add)
    assert_lives_are_lived(lambda: TimeLimit(make(), 13), lambda rng: int(rng.integers(3)), seed)


@pytest.mark.parametrize("name", ["CartPole-v1", "Taxi-v4", "Blackjack-v1"])
def test_classic_and_text_envs(name: str) -> None:
    n_actions = gym.make(name).action_space.n  # type: ignore[attr-defined]
    assert_lives_are_lived(lambda: gym.make(name), lambda rng: int(rng.integers(n_actions)), 0)


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v5"])
def test_mujoco_envs(name: str) -> None:
    pytest.importorskip("mujoco")
    space = gym.make(name).action_space
    assert_lives_are_lived(lambda: gym.make(name), lambda rng: rng.uniform(-1, 1, space.shape).astype(np.float32), 0)


def test_there_may_be_fewer_siblings_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    env: Any = make_branchable(Noisy())
    env.reset(seed=0)
    env.step_siblings(np.ones(4, int), [True] * 4, True)
    env.step_siblings(np.ones(2, int), [True] * 2, True)
    with monkeypatch.context() as patched:  # copies go on without the env
        patched.setattr(env, "_BranchingWrapper__engine", None)
        assert env.step_siblings(np.ones(2, int), [False] * 2, True).rewards
    env.env.later = {1, 2}  # snapshots can hold it, copies cannot
    steps = env.step_siblings(np.ones(2, int), [True] * 2, True)
    assert steps.rewards == [env.step(1)[1]] * 2
