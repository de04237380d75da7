"""Envs that keep state of every kind, for tests of snapshots."""

import array
import collections
import dataclasses
import functools
import random
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces


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


def noisy(add: Callable[[Noisy], Callable[[Noisy], Any]]) -> Callable[[], gym.Env[Any, Any]]:
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


def play(env: gym.Env[Any, Any], actions: list[Any]) -> list[Any]:
    """What actions lead to, exactly, with a reset at every end."""
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((np.asarray(observation).tolist(), float(reward), terminated, truncated))
        if terminated or truncated:
            seen.append(np.asarray(env.reset()[0]).tolist())
    return seen
