"""Random object graphs, their copies, and random mutations of both: ``python -m tests.object_graphs 10000``."""

import array
import collections
import functools
import operator
import random
import sys
import types
import weakref
from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching.copier import Copier
from tests.typed_envs import Slots, Stack


class Node:
    """Takes any attribute."""


class Pair(NamedTuple):
    left: Any
    right: Any


_CONTAINERS = (list, dict, collections.deque, collections.OrderedDict, collections.Counter, set, bytearray, Node, Stack)


def build(numbers: random.Random, size: int = 12) -> list[Any]:
    """Objects that refer to leaves and to each other, cycles included; the first one leads to all."""
    made: list[Any] = [Node()]
    for _ in range(size):
        made.append(_new(numbers, made))
        _put(numbers.choice(made[:-1]), made[-1], numbers)
        made[0].__dict__.setdefault("all", []).append(made[-1])
    return made


def _new(numbers: random.Random, made: list[Any]) -> Any:
    some = numbers.choice(made)
    kinds: Any = (
        *(kind for kind in _CONTAINERS for _ in range(2)),
        *(Slots, types.SimpleNamespace, random.Random, np.random.default_rng),
        *(lambda: collections.defaultdict(list), lambda: np.zeros(4), lambda: np.empty(3, object)),
        *(lambda: array.array("d", [1.0, 2.0]), lambda: (some, 1), lambda: Pair(some, [2]), lambda: frozenset([1, (2, 3)])),
        *(lambda: functools.partial(max, 0, some), lambda: weakref.ref(some) if isinstance(some, Node) else [some]),
        *(lambda: iter([1, some]), lambda: memoryview(bytearray(4)), lambda: np.ma.masked_equal([1.0, 2.0], 2.0)),
        *(lambda: some[1:] if isinstance(some, np.ndarray) and some.size > 1 else np.arange(6.0).reshape(2, 3).T,),
        *(
            lambda: np.zeros(2, dtype=[("x", float)]),
            lambda: lambda: some,
            lambda: [].append,
            lambda: {some} if _hashes(some) else 1,
        ),
    )
    return numbers.choice(kinds)()


def _hashes(one: Any) -> bool:
    return isinstance(one, int | Node | random.Random)


def _put(target: Any, value: Any, numbers: random.Random) -> None:
    """Let an object refer to a value, or change it otherwise."""
    n = numbers.randrange(100)
    if isinstance(target, dict):
        target[(n % 3, "k")] = n if isinstance(target, collections.Counter) else value
    elif isinstance(target, set):
        target.symmetric_difference_update({n % 6})
    elif isinstance(target, list | collections.deque):
        target.insert(n % (len(target) + 1), value)
    elif isinstance(target, bytearray | memoryview):
        if len(target):
            target[n % len(target)] = n
    elif isinstance(target, np.ndarray):
        if target.dtype == object:
            target[n % len(target)] = value
        elif target.dtype.names:
            target["x"][0] += n
        else:
            target.flat[n % target.size] += n
    elif isinstance(target, array.array):
        target[0] += n
    elif isinstance(target, random.Random | np.random.Generator):
        target.random()
    elif isinstance(target, Slots):
        target.items = value
    elif isinstance(target, type(iter([]))):
        next(target, None)
    elif isinstance(target, Node | types.SimpleNamespace | functools.partial):
        setattr(target, "abc"[n % 3], value)
    elif isinstance(target, types.BuiltinMethodType):
        target(n)


def _take(target: Any) -> None:
    """Take something out of an object."""
    if isinstance(target, Node):
        target.__dict__.pop("a", None)
    elif isinstance(target, list | bytearray | collections.deque) and len(target):
        if not isinstance(target, bytearray):
            target.pop()
    elif isinstance(target, dict) and target:
        target.popitem()


def picture(obj: Any, seen: dict[int, int]) -> Any:  # noqa: C901  one case a type
    """Contents, order and identities of all that is reachable, without addresses."""
    if id(obj) in seen:
        return ("seen", seen[id(obj)])
    kind = type(obj)
    if obj is None or kind in (int, float, str, bytes, bool):
        return obj
    seen[id(obj)] = len(seen)
    if isinstance(obj, random.Random):
        return kind, obj.getstate()
    if isinstance(obj, np.random.Generator):
        return kind, repr(obj.bit_generator.state)
    if isinstance(obj, np.ndarray) and obj.dtype != object:
        its = [picture(value, seen) for value in vars(obj).values()] if hasattr(obj, "__dict__") else []
        return kind, repr(obj.tolist()), obj.strides, its
    if isinstance(obj, weakref.ref):
        return kind, picture(obj(), seen)
    if isinstance(obj, memoryview | array.array | bytearray):
        return kind, bytes(obj)
    parts: list[Any] = []
    if isinstance(obj, dict):
        parts = [(picture(key, seen), picture(value, seen)) for key, value in obj.items()]
    elif isinstance(obj, set | frozenset):
        values = [one for one in obj if isinstance(one, int | tuple)]
        others = [one for one in obj if not isinstance(one, int | tuple)]  # they lie at places that their addresses give
        parts = [sorted(values) if others else values, *(picture(one, seen) for one in others)]
    elif isinstance(obj, list | tuple | collections.deque | np.ndarray):
        parts = [picture(one, seen) for one in obj]
    elif isinstance(obj, Slots):
        parts = [obj.n, picture(obj.items, seen)]
    elif isinstance(obj, functools.partial):
        parts = [picture(one, seen) for one in obj.args]
    elif isinstance(obj, types.FunctionType):
        parts = [picture(cell.cell_contents, seen) for cell in obj.__closure__ or ()]
    elif isinstance(obj, types.BuiltinMethodType):
        parts = [picture(obj.__self__, seen)]
    elif isinstance(obj, type(iter([]))):
        left = operator.length_hint(obj)
        parts = [left, picture(obj.__reduce__()[1] if left else (), seen)]
    attributes = obj.__dict__ if hasattr(obj, "__dict__") and not isinstance(obj, types.FunctionType | np.ndarray) else {}
    return kind, parts, [(name, picture(value, seen)) for name, value in attributes.items()]


def examine(seed: int, mutations: int = 20) -> None:
    """
    Copy a random graph, and mutate copy and original.

    :param seed: Which graph
    :param mutations: How many
    :raises AssertionError: where copy and original do not do the same, or one feels what happens to the other
    """
    numbers = random.Random(seed)
    made = build(numbers)
    copier = Copier()
    root = copier(made[0])
    copies = [copier.memo.get(id(one), one) for one in made]
    before = picture(made[0], {})
    assert picture(root, {}) == before, seed
    for _ in range(mutations):
        place, other, mutation = numbers.randrange(len(made)), numbers.randrange(len(made)), numbers.randrange(2**31)
        for objects, unchanged in ((copies, made), (made, copies)):
            still = picture(unchanged[0], {})
            chosen = random.Random(mutation)
            if chosen.random() < 0.2:
                _take(objects[place])
            else:
                _put(objects[place], objects[other] if chosen.random() < 0.5 else chosen.randrange(9), chosen)
            assert picture(unchanged[0], {}) == still, seed
        assert picture(made[0], {}) == picture(copies[0], {}), seed


def main() -> None:
    """Examine as many graphs as asked for."""
    for seed in range(int(sys.argv[1])):
        examine(seed)
    print(f"{sys.argv[1]} graphs, 20 mutations each: no difference")


if __name__ == "__main__":
    main()
