"""Envs that keep their state in objects of one type each, for tests of copies."""

import array
import collections
import contextvars
import dataclasses
import functools
import heapq
import io
import itertools
import operator
import queue
import random
import re
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from tests.stateful_envs import Noisy

Change = Callable[[Any], float]


class Calm:
    gain = 1.0


class Storm:
    gain = 5.0


@dataclasses.dataclass(slots=True)
class Slots:
    n: int = 0
    items: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class Knot:
    """One of several that hold each other in sets, which ask for a hash."""

    name: str
    others: set[Any] = dataclasses.field(default_factory=set)
    n: int = 0

    def __hash__(self) -> int:
        return hash(self.name)


class Dice(np.random.Generator):
    """A generator with a method and an attribute."""

    throws = 0

    def throw(self) -> float:
        self.throws += 1
        return float(self.integers(1, 7))


class Number(float):
    """A number with an attribute."""


class Shout(str):
    """A text with an attribute."""


class Stack(list[Any]):
    """A list with an attribute and a method of its own."""

    def append(self, value: Any) -> None:
        super().append(value)
        self.n = len(self)


class Cached:
    """Methods with a cache, and one that is computed once."""

    def __init__(self) -> None:
        self.scale = 2

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def times(self, n: int) -> int:
        return n * self.scale

    @functools.cached_property
    def table(self) -> list[int]:
        return [self.scale] * 3


def _iterators(env: Any) -> Change:
    env.count, env.cycle = itertools.count(3, 2), itertools.cycle([1.0, -1.0, 0.5])
    env.chain, env.islice = itertools.chain([1.0] * 40, [2.0] * 400), itertools.islice([3.0] * 900, 0, 800, 2)
    env.zipped, env.mapped, env.back = (
        zip(range(500), range(500), strict=False),
        map(abs, range(-400, 0)),
        reversed([0.5] * 500),
    )
    env.items = list(range(500))
    env.shared = iter(env.items)

    def change(env: Any) -> float:
        env.items.append(1)
        drawn = next(env.count) + next(env.cycle) + next(env.chain) + next(env.islice) + next(env.mapped) + next(env.back)
        return float(drawn + sum(next(env.zipped)) + next(env.shared))

    return change


def _knots(env: Any) -> Change:
    env.knot, other = Knot("one"), Knot("other")
    env.knot.others.add(other)
    other.others.add(env.knot)
    env.call = operator.methodcaller("__len__")

    def change(env: Any) -> float:
        (env.knot,) = env.knot.others
        env.knot.n += 1
        return float(env.knot.n + env.call(env.knot.others))

    return change


def _queues(env: Any) -> Change:
    env.fifo, env.events, env.heap = queue.Queue(), queue.PriorityQueue(), []
    env.events.put((0.0, "start"))

    def change(env: Any) -> float:
        env.fifo.put(env.x)
        env.events.put((env.x, "arrival"))
        heapq.heappush(env.heap, (env.x, len(env.heap)))
        first, _ = env.events.get_nowait()
        return float(first + (env.fifo.get_nowait() if env.fifo.qsize() > 3 else 0.0) + env.heap[0][0])

    return change


def _mappings(env: Any) -> Change:
    env.counter = collections.Counter()
    env.chained = collections.ChainMap({"a": 1.0}, {"b": 2.0})
    env.user, env.space = collections.UserDict(n=0), types.SimpleNamespace(n=0)
    env.default = collections.defaultdict(float)
    env.keys = {Calm(): 1.0, Calm(): 2.0}
    env.views = env.keys.keys(), env.keys.values(), env.keys.items()

    def change(env: Any) -> float:
        env.counter[int(env.x)] += 1
        env.chained["a"] = env.chained["a"] * 0.9 + env.chained["b"]
        env.user["n"] += 1
        env.space.n += 2
        if env.user["n"] % 3 == 0:
            env.default.default_factory = functools.partial(float, env.user["n"])
        for key in env.views[0]:
            env.keys[key] += 1
        parts = env.chained["a"] + env.user["n"] + env.space.n + env.default[("new", env.user["n"])]
        return float(parts + sum(env.views[1]) + sum(its for _, its in env.views[2]) + env.counter.most_common(1)[0][1])

    return change


def _buffers(env: Any) -> Change:
    env.bytes, env.doubles, env.text, env.raw = bytearray(4), array.array("d", [0.0] * 4), io.StringIO(), io.BytesIO()
    env.view, env.part = memoryview(env.bytes), memoryview(env.doubles)[1:3]
    env.numbers = np.frombuffer(env.doubles, dtype=np.float64)[2:]

    def change(env: Any) -> float:
        env.view[1] = (env.view[1] + 3) % 256
        env.part[0] += 1.5
        env.numbers[1] += 1
        env.text.write("x")
        env.raw.write(b"y")
        return float(env.bytes[1] + env.doubles[1] + env.doubles[3] + env.text.tell() + len(env.raw.getvalue()))

    return change


def _functions(env: Any) -> Change:
    env.partial = functools.partial(max, 0)
    env.partial.total = 0
    env.bound, env.cached = env.partial.__call__, Cached()
    env.append, env.own = [].append, functools.lru_cache(lambda n: n + 1)
    env.wrapped = functools.wraps(change_nothing)(lambda: env.x)
    env.aggregates = {"mean": np.mean, "size": np.linalg.norm, "largest": np.maximum}
    env.match = re.match("a+", "aab")

    def change(env: Any) -> float:
        env.partial.total += 1
        env.append(env.x)
        env.cached.table.append(env.partial.total)
        seen = [one([env.x, 1.0]) if name != "largest" else one(env.x, 1.0) for name, one in env.aggregates.items()]
        return float(
            sum(seen)
            + env.match.end()
            + env.partial.total
            + env.bound(2)
            + len(env.append.__self__)
            + env.cached.times(3)
            + env.wrapped()
        )

    return change


def change_nothing() -> float:
    return 0.0


def _references(env: Any) -> Change:
    env.strong = [Calm(), Calm()]
    env.weak, env.proxy = weakref.ref(env.strong[0]), weakref.proxy(env.strong[1])
    env.by_key, env.by_value = weakref.WeakKeyDictionary(), weakref.WeakValueDictionary()
    env.by_key[env.strong[0]], env.by_value["one"] = 1.0, env.strong[1]
    env.only_weak = weakref.WeakSet(env.strong)
    env.w = Calm()

    def change(env: Any) -> float:
        env.weak().gain += 1
        env.proxy.gain += 2
        env.by_key[env.strong[0]] += 1
        env.w.__class__ = Storm if env.w.__class__ is Calm else Calm
        return float(env.strong[0].gain + env.by_value["one"].gain + env.by_key[env.weak()] + env.w.gain + len(env.only_weak))

    return change


def _objects(env: Any) -> Change:
    env.slots, env.number, env.shout, env.stack = Slots(), Number(1.5), Shout("a"), Stack()
    env.number.n, env.shout.n = [0], [0]
    env.local, env.lock, env.condition = threading.local(), threading.Lock(), threading.Condition()
    env.local.n = 0
    env.metadata = {"n": 0}
    env.live = {"a": [0]}
    env.frozen = types.MappingProxyType(env.live)

    def change(env: Any) -> float:
        env.slots.n += 1
        env.slots.items.append(env.slots.n)
        env.stack.append(env.x)
        env.number.n[0] += 1
        env.shout.n[0] += 1
        env.local.n += 1
        env.metadata["n"] += 1
        env.live["a"] = [env.live["a"][0] + 1]
        with env.condition:
            seen = env.slots.items[-1] + env.stack.n + env.number.n[0] + env.shout.n[0] + env.local.n + env.frozen["a"][0]
        return float(seen + env.metadata["n"])

    return change


class Demand(random.Random):
    """A generator with attributes."""

    level: float = 0.0

    def next(self) -> float:
        self.level = 0.9 * self.level + self.gauss(0, 1)
        return self.level


def _generators(env: Any) -> Change:
    bits = np.random.PCG64(3)
    env.one, env.two, env.python = np.random.Generator(bits), np.random.Generator(bits), random.Random(5)
    env.seeds = np.random.SeedSequence(9)
    env.draw, env.demand, env.dice = env.two.normal, Demand(6), Dice(bits)

    def change(env: Any) -> float:
        child = np.random.default_rng(env.seeds.spawn(1)[0])
        seen = env.one.normal() + env.two.normal() + env.python.gauss(0, 1) + env.draw() + env.demand.next() + child.random()
        return float(seen + env.dice.throw() + env.dice.throws)

    return change


def _arrays(env: Any) -> Change:
    env.masked = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    env.rows = np.zeros(3, dtype=[("x", float), ("n", int), ("inner", [("y", float)])])
    env.row, env.field, env.inner = env.rows[1], env.rows["n"], env.rows[2]["inner"]
    env.grid = np.zeros((4, 6), order="F")
    env.column, env.flipped, env.turned = env.grid[:, 2], env.grid[::-1, 1:4], env.grid.T
    env.things = np.array([[1], None], dtype=object)
    env.first = env.things[:1]
    env.empty = np.array([]).reshape(0, 3), np.zeros((0, 2)).T, np.zeros((3, 4))[:, 4:]
    env.dates = np.array([np.datetime64("2020-01-01"), 1.0, "a"], dtype=object)

    def change(env: Any) -> float:
        env.masked[0] += 1
        env.masked.mask[1] = not env.masked.mask[1]
        env.row["x"] += 1
        env.inner["y"] += 1
        env.field[1] += 2
        env.column[1] += 1
        env.flipped[0] += 2
        env.turned[0, 0] += 1
        env.first[0].append(1)
        env.dates[0] += np.timedelta64(1, "D")
        env.empty = tuple(np.concatenate([one[:0], one]) for one in env.empty)
        return float(
            len(str(env.empty))
            + int(env.dates[0].astype(int))
            + env.masked.sum()
            + env.rows["x"].sum()
            + env.rows["n"].sum()
            + env.grid.sum()
            + len(env.things[0])
            + env.rows["inner"]["y"].sum()
        )

    return change


def _tensors(env: Any) -> Change:
    env.tensor = th.zeros(4)
    env.part, env.as_array = env.tensor[1:3], env.tensor.numpy()
    env.net = th.nn.Linear(2, 1)
    th.nn.init.ones_(env.net.weight)
    th.nn.init.zeros_(env.net.bias)
    env.own = th.Generator()

    def change(env: Any) -> float:
        env.part += 1
        env.as_array[0] += 2
        with th.no_grad():
            env.net.weight += 0.5
            out = env.net(th.ones(2)).item()
        return float(env.tensor.sum().item() + out + th.rand(1, generator=env.own).item())

    return change


_LEVEL: contextvars.ContextVar[int] = contextvars.ContextVar("level", default=0)

TYPES = {
    one.__name__.strip("_"): one
    for one in (
        *(_iterators, _knots, _queues, _mappings, _buffers, _functions, _references),
        *(_objects, _generators, _arrays, _tensors),
    )
}


def env_with(add: Callable[[Any], Change]) -> Noisy:
    """
    :param add: Puts objects into an env and returns what changes them in a step
    :return: The env
    """
    env = Noisy()
    env.change = add(env)
    return env


def _windows(env: Any) -> Change:
    env.series = np.arange(8.0)
    env.windows = np.lib.stride_tricks.sliding_window_view(env.series, 3, writeable=True)
    env.read_only = np.lib.stride_tricks.sliding_window_view(env.series, 3)
    env.table = np.arange(4.0)
    env.table.flags.writeable = False
    env.broadcast = np.broadcast_to(env.series[:1], (3,))

    def change(env: Any) -> float:
        env.series[2] += 1
        env.windows[0, 0] += 2
        return float(env.windows.sum() + env.read_only.sum() + env.table.sum() + env.broadcast.sum())

    return change


TYPES["windows"] = _windows
