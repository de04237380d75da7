"""Any graph of containers is put back as it was: contents, order (but that of sets) and identities."""

import collections
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching import InPlaceEngine
from tests.stateful_envs import Node, Noisy


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
        if isinstance(obj, set):  # the order of one that changed and came back may be another: it tells of what was removed
            items = sorted(obj)
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
