"""A branched env goes on bit for bit like a twin that was never branched."""

import array
import collections
import copy
import dataclasses
import functools
import itertools
import logging
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from ctypes import Structure, c_int
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching import InPlaceEngine
from sb3_hybrid_grpo.errors import BranchingError

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


class Noisy(gym.Env[Any, Any]):
    """Random dynamics, and whatever state a test adds: ``change`` is called in every step, its result is observed."""

    def __init__(self, change: Callable[["Noisy"], Any] | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = spaces.Discrete(3)
        self.change = change
        self.x = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return np.array([self.x, 0.0, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = 0.7 * self.x + float(action) + float(self.np_random.normal())
        seen = 0.0 if self.change is None else float(self.change(self))
        return np.array([self.x, seen, self.np_random.random()]), self.x, bool(self.x > 4.0), False, {}


def _noisy(add: Callable[[Noisy], Callable[[Noisy], Any]]) -> Callable[[], gym.Env[Any, Any]]:
    def make() -> gym.Env[Any, Any]:
        env = Noisy()
        env.change = add(env)
        return env

    return make


class Slotted:
    """State in slots."""

    __slots__ = ("inner", "n", "scratch")

    def __init__(self) -> None:
        self.n, self.inner = 0, [1.0]


class Pair(NamedTuple):
    a: float
    b: int


@dataclasses.dataclass
class Data:
    n: int = 0
    items: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class FrozenData:
    n: int


class Counting(dict[str, int]):
    """A dict with a method and attributes."""

    def count(self, key: str) -> int:
        self[key] = self.get(key, 0) + 1
        self.last = key
        return self[key]


class Node:
    """Part of a cycle."""

    def __init__(self) -> None:
        self.next: Node = self
        self.n = 0


def _slots(env: Noisy) -> Callable[[Noisy], Any]:
    env.s = Slotted()  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.s.n += 1
        env.s.inner[0] *= 1.1
        if hasattr(env.s, "scratch"):
            del env.s.scratch
        else:
            env.s.scratch = env.x
        return float(env.s.n + env.s.inner[0] + getattr(env.s, "scratch", 0.5))

    return change


def _nested(env: Noisy) -> Callable[[Noisy], Any]:
    env.d = {"a": [1, {"b": collections.deque([0.0], maxlen=3)}], "s": {1}, "t": ([0],), "f": frozenset([(1, 2)])}  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        d = env.d
        d["a"][0] += 1
        d["a"][1]["b"].append(env.x)
        d["s"].symmetric_difference_update({int(10 * abs(env.x)) % 5})
        d["t"][0][0] += d["a"][0]
        d[f"k{d['a'][0] % 4}"] = [env.x]
        if len(d) > 6:
            d.pop(next(iter(d.keys() - {"a", "s", "t", "f"})))
        return float(sum(d["a"][1]["b"]) + sum(d["s"]) + d["t"][0][0] + len(d))

    return change


def _replaced_tuples(env: Noisy) -> Callable[[Noisy], Any]:
    env.pair, env.deep, env.frozen = Pair(0.0, 0), (1, (2.0, np.zeros(2))), FrozenData(0)  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.pair = Pair(env.pair.a + env.x, env.pair.b + 1)
        env.deep = (env.deep[0] + 1, (env.x, env.deep[1][1] + 1))
        env.frozen = FrozenData(env.frozen.n + 2)
        return float(env.pair.a + env.pair.b + env.deep[0] + env.deep[1][1].sum() + env.frozen.n)

    return change


def _arrays(env: Noisy) -> Callable[[Noisy], Any]:
    base = np.zeros(6)
    view = base[::2]
    view.flags.writeable = False
    env.base, env.view, env.same = base, view, base  # type: ignore[attr-defined]
    env.objects = np.array([[1], None, np.zeros(1)], dtype=object)  # type: ignore[attr-defined]
    env.replaced, env.sometimes = np.zeros(2), None  # type: ignore[attr-defined]
    env.rows = np.zeros(2, dtype=[("x", float)])  # type: ignore[attr-defined]
    env.row = env.rows[1]  # type: ignore[attr-defined]
    env.sub = np.zeros(2).view(np.recarray)  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.same += env.x
        env.objects[0].append(env.x)
        env.objects[1] = env.objects[0] if env.objects[1] is None else None
        env.objects[2] += 1
        env.replaced = env.replaced + env.x
        env.sometimes = np.full(3, env.x) if env.sometimes is None else None
        env.row["x"] += 1
        env.sub[0] += 2
        seen = env.view.sum() + len(env.objects[0]) + env.objects[2][0] + env.replaced[0] + env.rows["x"][1] + env.sub[0]
        return float(seen + (env.objects[1] is None) + (0 if env.sometimes is None else env.sometimes[0]))

    return change


def _dicts(env: Noisy) -> Callable[[Noisy], Any]:
    env.ordered = collections.OrderedDict(a=1.0, b=2.0, c=3.0)  # type: ignore[attr-defined]
    env.default = collections.defaultdict(list)  # type: ignore[attr-defined]
    env.counting, env.counter = Counting(), collections.Counter()  # type: ignore[attr-defined]
    env.grid = {(0, 0): np.zeros(1)}  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        key = "abc"[int(10 * abs(env.x)) % 3]
        env.ordered.move_to_end(key)
        env.default[key].append(env.x)
        env.counter[key] += 1
        env.grid[(len(env.grid), 0)] = np.full(1, env.x)
        if len(env.grid) > 4:
            del env.grid[next(iter(env.grid))]
        first = env.ordered[next(iter(env.ordered))]
        seen = first + len(env.default[key]) + env.counting.count(key) + env.counter[key]
        return float(seen + sum(v[0] for v in env.grid.values()))

    return change


def _closures(env: Noisy) -> Callable[[Noisy], Any]:
    n, late = 0, None
    seen: list[float] = []

    def count() -> int:
        nonlocal n
        n += 1
        return n

    def add(store: list[float], value: float, weights: list[float] = [1.0]) -> float:  # noqa: B006  the point of the test
        store.append(value)
        weights[0] *= 0.9
        return sum(store) * weights[0]

    def assigned_later() -> float:
        nonlocal late
        late = [0.0] if late is None else [late[0] + 1]
        return float(late[0])

    data = Data()
    env.count, env.add, env.bound = count, functools.partial(add, seen), data.items.append  # type: ignore[attr-defined]
    env.method = Node.__init__.__get__(Node())  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.bound(1)
        env.method.__self__.n += 1
        return float(env.count() + env.add(env.x) + assigned_later() + len(env.bound.__self__) + env.method.__self__.n)

    return change


def _generators(env: Noisy) -> Callable[[Noisy], Any]:
    env.legacy, env.python = np.random.RandomState(1), random.Random(2)  # type: ignore[attr-defined]
    env.bound, env.drawn = random.Random(5).random, np.random.default_rng(6).normal  # type: ignore[attr-defined]
    env.pcg = np.random.Generator(np.random.PCG64DXSM(3))  # type: ignore[attr-defined]
    env.twister = np.random.Generator(np.random.MT19937(4))  # type: ignore[attr-defined]
    env.numbers = array.array("d", [0.0])  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.numbers[0] += 1
        env.numbers.append(env.x)
        drawn = env.legacy.randn() + env.python.gauss(0, 1) + env.pcg.normal() + env.twister.random() + env.bound()
        child = env.pcg.spawn(1)[0].random()
        return float(drawn + env.drawn() + child + env.action_space.sample() + env.numbers[0] + len(env.numbers))

    return change


def _cycles(env: Noisy) -> Callable[[Noisy], Any]:
    one, two = Node(), Node()
    one.next, two.next = two, one
    env.node, env.me, env.weak, env.proxy = one, env, weakref.ref(two), weakref.proxy(one)  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        env.node = env.node.next
        env.node.n += 1
        env.weak().n += 2
        env.me.total = getattr(env, "total", 0.0) + env.x
        return float(env.node.n + env.node.next.n + env.total + env.proxy.n + (env.weak() is env.node))

    return change


def _attributes(env: Noisy) -> Callable[[Noisy], Any]:
    env.data, env.trail, env.spec_of_mine = Data(), [], {"n": 0}  # type: ignore[attr-defined]

    def change(env: Any) -> float:
        if "extra" in vars(env):
            del env.extra
        else:
            env.extra = {"x": [env.x]}
        env.data.n += 1
        env.data.items = [env.data.n, *env.data.items[:3]]
        env.trail.append({"n": env.data.n})
        env.info = {"x": env.x}
        return float(sum(env.data.items) + len(env.trail) + len(vars(env)))

    return change


STATES = [_slots, _nested, _replaced_tuples, _arrays, _dicts, _closures, _generators, _cycles, _attributes]


@pytest.mark.parametrize("add", STATES)
def test_state_of_every_kind(add: Callable[[Noisy], Callable[[Noisy], Any]]) -> None:
    _check_against_twin(_noisy(add), n_steps=40, every=3, length=9)


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


def test_members_that_refer_to_objects_of_their_own_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = TimeLimit(Noisy(), 50)
    engine = InPlaceEngine(env)
    snapshots = []
    for seed in range(3):  # a seed makes a new generator
        env.reset(seed=seed)
        snapshots.append(engine.save())
    walks: list[int] = []
    monkeypatch.setattr(engine, "_walk", lambda: walks.append(1))
    for _ in range(4):
        for member in range(3):
            engine.restore(snapshots[member])
            env.step(1)
            snapshots[member] = engine.save(snapshots[member])
    assert not walks


# random graphs of containers


def _leaf(number: int) -> Any:
    return [None, number, float(number), str(number), (number, "t"), np.full(2, number), {number}][number % 7]


def _build(numbers: list[int], thing: Any) -> list[Any]:
    """Containers that refer to leaves and to each other, cycles included."""
    made: list[Any] = [thing]
    for number in numbers:
        new: Any = [[], {}, collections.deque(maxlen=4), collections.OrderedDict(), Node(), set(), np.empty(2, object)][
            number % 7
        ]
        _put(made[number % len(made)], new, number)
        _put(new, made[number // 3 % len(made)] if number % 2 else _leaf(number), number)
        made.append(new)
    return made


def _put(target: Any, value: Any, number: int) -> None:
    if isinstance(target, set):
        target.symmetric_difference_update({number % 6})
    elif isinstance(target, dict):
        target[number % 3 if number % 2 else str(number % 3)] = value
    elif isinstance(target, np.ndarray):
        target[number % 2] = value
    elif isinstance(target, Node):
        setattr(target, "abc"[number % 3], value)
    elif number % 3 and len(target):
        target[number % len(target)] = value
    else:
        target.append(value)


def _take(target: Any, number: int) -> None:
    if isinstance(target, Node):
        vars(target).pop("abc"[number % 3], None)
    elif isinstance(target, np.ndarray):
        target[number % 2] = None
    elif target:
        target.popitem() if isinstance(target, dict) else target.pop()


def _picture(obj: Any, seen: dict[int, Any]) -> Any:
    """Contents, order and identities of all that is reachable."""
    if isinstance(obj, np.ndarray) and obj.dtype != object:
        return (id(obj), obj.tolist())
    if not isinstance(obj, list | dict | collections.deque | Node | set | np.ndarray):
        return (type(obj), repr(obj))
    if id(obj) not in seen:
        seen[id(obj)] = None
        items = vars(obj) if isinstance(obj, Node) else obj
        entries = items.items() if isinstance(items, dict) else enumerate(items)
        seen[id(obj)] = [(key, _picture(value, seen)) for key, value in entries]
    return id(obj)


def _whole(obj: Any) -> tuple[Any, dict[int, Any]]:
    seen: dict[int, Any] = {}
    return _picture(obj, seen), seen


_numbers = st.lists(st.integers(0, 400), min_size=1, max_size=12)


@settings(max_examples=120, deadline=None)
@given(_numbers, st.lists(_numbers, min_size=1, max_size=4))
def test_any_graph_of_containers(numbers: list[int], changes: list[list[int]]) -> None:
    env = Noisy()
    env.root = Node()  # type: ignore[attr-defined]
    made = _build(numbers, env.root)  # type: ignore[attr-defined]
    engine = InPlaceEngine(env)
    saved = [(engine.save(), _whole(env.root))]  # type: ignore[attr-defined]
    for change in changes:
        for number in change:
            target = made[number % len(made)]
            if isinstance(target, np.ndarray) and target.dtype != object:
                target += number
            elif number % 4 == 0:
                _take(target, number)
            else:
                _put(target, made[number % 5 % len(made)] if number % 5 == 1 else _leaf(number), number)
            for value in target if isinstance(target, list | collections.deque) else ():
                if isinstance(value, np.ndarray) and value.dtype != object:
                    value += 1
        saved.append((engine.save(), _whole(env.root)))  # type: ignore[attr-defined]
    for snapshot, picture in [*reversed(saved), *saved]:
        engine.restore(snapshot)
        assert _whole(env.root) == picture  # type: ignore[attr-defined]
        again = engine.save()
        env.root = None  # type: ignore[attr-defined]
        engine.restore(again)
        assert _whole(env.root) == picture  # type: ignore[attr-defined]
