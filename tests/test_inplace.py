"""A branched env goes on bit for bit like a twin that was never branched."""

import copy
import functools
import itertools
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from ctypes import Structure, c_int
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo.branching import InPlaceEngine
from sb3_hybrid_grpo.errors import BranchingError
from tests.stateful_envs import STATES, Data, Noisy, noisy

Step = tuple[Any, ...]


def _flat(observation: Any) -> bytes:
    values = list(observation.values()) if isinstance(observation, dict) else observation
    return b"".join(np.asarray(value).tobytes() for value in (values if isinstance(values, list | tuple) else [values]))


def _play(env: gym.Env[Any, Any], actions: list[Any]) -> list[Step]:
    """What the actions lead to, through ends of episodes and resets without a seed."""
    steps: list[Step] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(copy.deepcopy(action))
        steps.append((_flat(observation), np.float64(reward).tobytes(), terminated, truncated))
        if terminated or truncated:
            steps.append((_flat(env.reset()[0]),))
    return steps


def _check_against_twin(make: Callable[[], gym.Env[Any, Any]], n_steps: int, every: int, length: int, limit: int = 13) -> None:
    env, twin = TimeLimit(make(), limit), TimeLimit(make(), limit)
    env.action_space.seed(7)
    actions = [env.action_space.sample() for _ in range(n_steps)]
    others = [[env.action_space.sample() for _ in range(length)] for _ in range(2)]
    for one in (env, twin):
        one.reset(seed=3)
        one.action_space.seed(11)  # some envs draw from their spaces
    engine = InPlaceEngine(env)
    snapshot: Any = None
    for t, action in enumerate(actions):
        if t % every == 0:
            snapshot = engine.save(snapshot)
            truth = _play(env, others[0])
            for branch in (others[1], others[0]):
                engine.restore(snapshot)
                steps = _play(env, branch)
            assert steps == truth, f"the same branch twice, from step {t}"
            middle = engine.save()  # a sibling that goes on
            engine.restore(snapshot)
            assert _play(env, others[0]) == truth, f"after a save elsewhere, from step {t}"
            engine.restore(middle)
            _play(env, others[1])
            engine.restore(snapshot)
        assert _play(env, [action]) == _play(twin, [action]), f"step {t} differs from the twin's"


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "FrozenLake-v1",
        "Taxi-v4",
        "Blackjack-v1",
        "CliffWalking-v1",
    ],
)
def test_classic_and_text_envs(name: str) -> None:
    if name not in gym.registry:
        name = {"Taxi-v4": "Taxi-v3", "CliffWalking-v1": "CliffWalking-v0"}[name]
    _check_against_twin(lambda: gym.make(name), n_steps=80, every=5, length=20)


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Ant-v5", "Hopper-v5"])
def test_mujoco_envs(name: str) -> None:
    pytest.importorskip("mujoco")
    _check_against_twin(lambda: gym.make(name), n_steps=40, every=5, length=16)


@pytest.mark.parametrize("add", STATES)
def test_state_of_every_kind(add: Callable[[Noisy], Callable[[Noisy], Any]]) -> None:
    _check_against_twin(noisy(add), n_steps=40, every=3, length=9)


class Sharing(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that shares an array and a list with its env."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        env.unwrapped.shared, env.unwrapped.trace = np.zeros(2), [0.0]  # type: ignore[attr-defined]
        self.shared, self.trace = env.unwrapped.shared, env.unwrapped.trace  # type: ignore[attr-defined]

    def step(self, action: Any) -> Any:
        self.shared += 1
        self.trace.append(float(self.shared[0]))
        return super().step(action)


def test_aliases_between_wrapper_and_env_stay_aliases() -> None:
    env = Sharing(Noisy(lambda env: env.shared[0] + len(env.trace)))  # type: ignore[attr-defined]
    env.reset(seed=0)
    engine = InPlaceEngine(env)
    snapshot = engine.save()
    shared, trace = env.shared, env.trace
    for _ in range(3):
        env.step(1)
    engine.restore(snapshot)
    assert env.shared is shared is env.unwrapped.shared  # type: ignore[attr-defined]
    assert env.trace is trace is env.unwrapped.trace  # type: ignore[attr-defined]
    assert (shared.tolist(), trace) == ([0.0, 0.0], [0.0])
    _check_against_twin(
        lambda: Sharing(Noisy(lambda env: env.shared[0] + len(env.trace))),  # type: ignore[attr-defined]
        n_steps=20,
        every=3,
        length=5,
    )


class Hooked(Noisy):
    """Saves itself, and forgets its generator; holds a generator object that nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.uncopyable = (n for n in range(3))
        self.calls = 0

    def save_state(self) -> Any:
        self.calls += 1
        return self.x

    def restore_state(self, state: Any) -> None:
        self.x = state


class Forwarding(gym.Wrapper[Any, Any, Any, Any]):
    """Has state of its own, and passes on every name that it does not know."""

    n = 0

    def step(self, action: Any) -> Any:
        self.n += 1
        observation, reward, *rest = super().step(action)
        return (observation + self.n, reward, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def test_an_env_that_saves_itself() -> None:
    _check_against_twin(Hooked, n_steps=30, every=3, length=6)
    _check_against_twin(lambda: Forwarding(Hooked()), n_steps=30, every=3, length=6)


class HookedWrapper(Forwarding):
    """A wrapper that saves all that it wraps, but for the generator."""

    def save_state(self) -> Any:
        return self.n, self.env.unwrapped.x  # type: ignore[attr-defined]

    def restore_state(self, state: Any) -> None:
        self.n, self.env.unwrapped.x = state  # type: ignore[attr-defined]


def test_a_wrapper_that_saves_itself_and_all_below() -> None:
    def make() -> gym.Env[Any, Any]:
        env = Noisy()
        env.uncopyable = (n for n in range(3))  # type: ignore[attr-defined]
        return Forwarding(HookedWrapper(env))

    _check_against_twin(make, n_steps=30, every=3, length=6)


class Foreign(Structure):
    _fields_ = [("n", c_int)]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: (n for n in range(3)), "builtins.generator"),
        (lambda: (n for n in range(3)).__next__, "builtins.generator"),
        (lambda: itertools.count(), "itertools.count"),
        (lambda: iter([1, 2]), "builtins.list_iterator"),
        (lambda: Path(__file__).open(), "_io.TextIOWrapper"),
        (lambda: Path(__file__).open("rb"), "_io.BufferedReader"),
        (lambda: threading.Thread(), "threading.Thread"),
        (lambda: threading.Event(), "threading.Event"),
        (lambda: subprocess.Popen([sys.executable, "-c", ""]), "subprocess.Popen"),
        (lambda: th.zeros(2), "torch.Tensor"),
        (lambda: Foreign(1), f"{__name__}.Foreign"),
        (lambda: random.SystemRandom(), "random.SystemRandom"),
        (lambda: np.zeros(2, dtype=[("o", object)]), "numpy.ndarray"),
    ],
)
def test_what_cannot_be_copied_is_refused_by_name(make: Callable[[], Any], kind: str) -> None:
    env = Noisy()
    held = make()
    env.data = Data(items=[{"deep": held}])  # type: ignore[attr-defined]
    with pytest.raises(BranchingError) as caught:
        InPlaceEngine(TimeLimit(env, 5))
    message = str(caught.value)
    assert "<TimeLimit<Noisy" in message
    assert f"holds a {kind}," in message
    assert "Data.items[0]['deep']" in message
    assert "SupportsBranching" in message and "n_samples=1" in message
    # files, threads and processes can be put back by no function
    assert ("register_engine" in message) == (not kind.startswith(("_io", "threading", "subprocess", "random")))
    assert ("close it; write from a callback" in message) == kind.startswith("_io")
    if isinstance(held, subprocess.Popen):
        held.wait()


def test_what_is_first_met_later_is_refused_then() -> None:
    def meet(env: Any) -> float:
        env.late = [itertools.count()]
        return 0.0

    env = Noisy(meet)
    env.reset(seed=0)
    engine = InPlaceEngine(env)
    engine.save()
    env.step(0)
    with pytest.raises(BranchingError, match=r"Noisy\.late\[0\] holds a itertools\.count"):
        engine.save()


def test_locks_loggers_and_standard_streams_are_no_state() -> None:
    env = Noisy()
    env.things = [threading.Lock(), threading.RLock(), logging.getLogger("x"), sys.__stdout__, Noisy, np, len]  # type: ignore[attr-defined]
    closed = Path(__file__).open()
    closed.close()
    env.closed = closed  # type: ignore[attr-defined]
    engine = InPlaceEngine(env)
    engine.restore(engine.save())


def test_members_that_refer_to_objects_of_their_own_need_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    env = TimeLimit(Noisy(), 50)
    engine = InPlaceEngine(env)
    start = engine.save()
    snapshots = []
    for seed in range(3):  # a seed makes a new generator
        engine.restore(start)
        env.reset(seed=seed)
        snapshots.append(engine.resave(start))
    walks: list[int] = []
    monkeypatch.setattr(engine, "_walk", lambda: walks.append(1))
    for _ in range(4):
        for member in range(3):
            engine.restore(snapshots[member])
            env.step(1)
            snapshots[member] = engine.resave(snapshots[member], snapshots[member])
    assert not walks


_NUMBERS = (np.zeros(2), 1)


def _with_default(numbers: Any = _NUMBERS) -> Any:
    return numbers


@pytest.mark.parametrize(
    ("make", "array_of"),
    [
        (lambda array: (array, np.ones(2)), lambda held: held[0]),
        (lambda array: [(array, 1)], lambda held: held[0][0]),
        (lambda array: {"pair": (array,)}, lambda held: held["pair"][0]),
        (lambda array: functools.partial(max, array), lambda held: held.args[0]),
        (lambda array: ((array,), 2), lambda held: held[0][0]),
        (lambda array: _with_default, lambda held: held.__defaults__[0][0]),
    ],
    ids=["tuple", "in a list", "in a dict", "partial", "tuple in a tuple", "default"],
)
def test_arrays_in_tuples_come_back(make: Callable[[Any], Any], array_of: Callable[[Any], Any]) -> None:
    env: Any = Noisy()
    env.held = make(np.zeros(2))
    engine = InPlaceEngine(env)
    snapshot = engine.save()
    array_of(env.held)[:] += 1
    later = engine.save()
    engine.restore(snapshot)
    assert array_of(env.held).tolist() == [0.0, 0.0]
    engine.restore(later)
    assert array_of(env.held).tolist() == [1.0, 1.0]
    engine.restore(snapshot)
