"""What is copied goes on by itself, bit for bit; what cannot be copied is said so."""

import collections
import functools
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo.branching import InPlaceEngine, copies, make_branchable
from sb3_hybrid_grpo.branching.copies import CannotCopyError, EnvCopy
from sb3_hybrid_grpo.branching.trial import copies_are_exact
from sb3_hybrid_grpo.errors import BranchingError
from tests.stateful_envs import Noisy, play

IDS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "Taxi-v4", "HalfCheetah-v5", "Ant-v5", "Hopper-v5"]


@pytest.mark.parametrize("name", IDS)
def test_a_copy_lives_the_life_of_the_original_and_neither_disturbs_the_other(name: str) -> None:
    env, twin = gym.make(name), gym.make(name)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(60)]
    for one in (env, twin):
        one.reset(seed=3)
        play(one, actions[:15])
    copied = EnvCopy(env)
    other = EnvCopy(env)
    play(other.env, actions[::-1])
    expected = play(twin, actions)
    assert play(copied.env, actions) == expected
    assert play(env, actions) == expected
    again = EnvCopy(env, copied)  # in the memory of the first
    expected = play(twin, actions)
    play(other.env, actions)
    assert play(again.env, actions) == expected
    assert play(env, actions) == expected


def test_references_stay_what_they_are_and_nothing_is_shared_that_changes() -> None:
    env = Noisy()
    inner: Any = env
    inner.array = np.arange(6.0)
    inner.view, inner.same = inner.array[2:4], inner.array
    inner.nested = {"a": [inner.array, (inner, [1])], "d": collections.deque([1, 2], maxlen=2)}
    inner.counts = collections.defaultdict(list, {"x": [1]})
    inner.bound = inner.reset
    inner.reset(seed=0)
    other: Any = EnvCopy(env).env
    assert other is not env and other.same is other.array and other.nested["a"][0] is other.array
    assert other.nested["a"][1][0] is other and other.bound.__self__ is other and other.nested["d"].maxlen == 2
    other.array[2] = 100
    other.counts["y"].append(2)
    other.nested["a"][1][1].append(2)
    assert other.view[0] == 100 and inner.view[0] == 2
    assert dict(inner.counts) == {"x": [1]} and inner.nested["a"][1][1] == [1]
    assert other.np_random is not inner.np_random and other.np_random.random() == inner.np_random.random()


def test_a_tuple_in_a_cycle_stays_one() -> None:
    env: Any = Noisy()
    env.reset(seed=0)
    env.rows = ([env], "rows")
    env.rows[0].append(env.rows)
    its: Any = EnvCopy(env).env
    assert its.rows[0][1] is its.rows and its.rows[0][0] is its and its.rows is not env.rows


class Slotted:
    __slots__ = ("held", "unset")


class Unreadable:
    """Says at its copy that it has no such attribute."""


def test_what_a_slot_holds_is_copied_or_the_env_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(copier: EnvCopy, obj: Any) -> None:
        raise AttributeError("no such attribute")

    env: Any = Noisy()
    env.reset(seed=0)
    env.part = Slotted()
    env.part.held = [1]
    its: Any = EnvCopy(env).env
    assert its.part.held == [1] and its.part.held is not env.part.held and not hasattr(its.part, "unset")
    env.part.held = Unreadable()
    monkeypatch.setitem(copies._COPIERS, Unreadable, fail)
    with pytest.raises(AttributeError, match="no such attribute"):
        EnvCopy(env)


def test_what_became_of_an_earlier_copy_leaves_no_trace_in_the_next() -> None:
    env: Any = Noisy()
    env.reset(seed=0)
    env.rows = [[1, 2], [(3, 4), (5, 6)], [], [[7]]]
    env.pair = (env.rows, "name", [8], np.zeros(2))
    env.itself = [env, env.rows]
    copied = EnvCopy(env)
    its: Any = copied.env
    its.rows[0].append(9)
    its.rows[1].clear()
    its.rows[2] = its.rows[3] = its.rows[0]
    its.rows.pop(0)
    its.pair[2].extend([1, 2, 3])
    its.pair[3][:] = 5
    its.pair, its.more = its.pair[2], its
    env.rows[3].append([10])
    env.rows[2] = env.rows[0]
    again = EnvCopy(env, copied)
    its = again.env
    assert its.rows == env.rows == [[1, 2], [(3, 4), (5, 6)], [1, 2], [[7], [10]]]
    assert its.rows[2] is its.rows[0] and its.rows[3] is not env.rows[3] and its.rows[3][1] is not env.rows[3][1]
    assert its.pair[:3] == env.pair[:3] and its.pair[0] is its.rows and its.pair[2] is not env.pair[2]
    assert its.pair[3].tolist() == [0, 0]
    assert its.itself[0] is its and its.itself[1] is its.rows
    assert not hasattr(its, "more")
    env.pair = (env.pair[2], env.rows)
    its = EnvCopy(env, again).env
    assert its.pair[1] is its.rows and its.pair[0] == [8] and its.pair[0] is not env.pair[0]


class Thrown(list[int]):
    """A subclass of a container."""


class Hit(int):
    """A number with attributes."""


class Dying:
    def __del__(self) -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        lambda env: {1, 2},
        lambda env: weakref.ref(env),
        lambda env: lambda: env,
        lambda env: Thrown([1]),
        lambda env: Dying(),
        lambda env: {env: 1},
        lambda env: np.array([env]),
        lambda env: [].append,
        lambda env: (n for n in range(3)),
        lambda env: np.random.PCG64(1),
        lambda env: np.random.Generator(env.np_random.bit_generator),
        lambda env: np.frompyfunc(env.step, 1, 1),
        lambda env: np.zeros(2, dtype=[("x", float)])[0],
        lambda env: Hit(3),
        lambda env: functools.lru_cache(env.step),
    ],
    ids=[
        *("set", "weakref", "closure", "subclass", "finalizer", "key", "objects", "bound", "generator", "bits"),
        *("shared bits", "ufunc", "record", "number", "cache"),
    ],
)
def test_what_a_copy_could_get_wrong_is_not_copied(make: Any) -> None:
    env: Any = Noisy()
    env.reset(seed=0)
    EnvCopy(env)
    env.held = make(env)
    try:  # what snapshots in place take to be constant must not rub off on copies
        InPlaceEngine(env)
    except BranchingError:
        pass
    with pytest.raises(CannotCopyError):
        EnvCopy(env)


_registry: dict[int, list[float]] = {}


class Registered(Noisy):
    """Keeps its state in a place that a copy does not lead to, under its own identity."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        _registry.setdefault(id(self), [0.0])[0] += 1
        return (result[0] + _registry[id(self)][0], *result[1:])


class Numbered(Noisy):
    """Says which object it is."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return (result[0] + id(self) % 997, *result[1:])


def test_a_trial_finds_out_what_types_do_not_show() -> None:
    good, numbered, registered = (TimeLimit(kind(), 50) for kind in (Noisy, Numbered, Registered))
    for env in (good, numbered, registered):
        env.reset(seed=0)
        env.step(1)
    assert copies_are_exact(good, InPlaceEngine(good))
    assert not copies_are_exact(numbered, InPlaceEngine(numbered))
    with pytest.raises(BranchingError, match="played the same actions differently"):
        copies_are_exact(registered, InPlaceEngine(registered))


def test_a_table_that_cannot_change_is_shared() -> None:
    env: Any = Noisy()
    env.reset(seed=0)
    env.prices, env.changing = np.zeros(1000), np.zeros(1000)
    env.prices.flags.writeable = False
    env.week = env.prices[:7]
    other: Any = EnvCopy(env).env
    assert other.prices is env.prices and other.week is env.week and other.changing is not env.changing


@pytest.mark.parametrize("name", IDS)
def test_siblings_that_go_on_are_copies_and_others_are_not(name: str) -> None:
    env = make_branchable(gym.make(name))
    env.reset(seed=0)
    step_siblings = env.get_wrapper_attr("step_siblings")
    actions = np.array([env.action_space.sample() for _ in range(2)])
    before = len(env.get_wrapper_attr("siblings_beside"))
    step_siblings(actions, np.ones(2, bool), False)
    assert len(env.get_wrapper_attr("siblings_beside")) == before == 0
    step_siblings(actions, np.ones(2, bool), True)
    assert [type(one) for one in env.get_wrapper_attr("siblings_beside").values()] == [EnvCopy] * 2
