"""Envs that keep state where a snapshot in place does not see it, for tests of the check and of forks."""

import ctypes
import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from tests.stateful_envs import Noisy

COUNT = 0
TABLE: dict[str, list[float]] = {"seen": []}
CACHE: dict[float, float] = {}
GENERATOR = np.random.default_rng(0)
_KEPT: list[Any] = []


def _with(change: Callable[[Any], float], **attributes: Any) -> Noisy:
    env = Noisy(change)
    for name, value in attributes.items():
        setattr(env, name, value)
    return env


def generator() -> gym.Env[Any, Any]:
    return _with(lambda env: next(env.noise), noise=(float(n % 7) for n in itertools.count()))


def iterator() -> gym.Env[Any, Any]:
    return _with(lambda env: float(next(env.late[0])), late=[itertools.count()])


def module_global() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        global COUNT
        COUNT += 1
        return float(COUNT % 5)

    return _with(change)


def module_table() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        TABLE["seen"].append(env.x)
        return sum(TABLE["seen"])

    return _with(change)


class Counting(Noisy):
    """Counts all steps of all its instances."""

    steps = 0

    def __init__(self) -> None:
        super().__init__(self._count)

    @classmethod
    def _count(cls, env: Any) -> float:
        cls.steps += 1
        return float(cls.steps % 5)


def global_numpy() -> gym.Env[Any, Any]:
    return _with(lambda env: float(np.random.normal()))


def global_python() -> gym.Env[Any, Any]:
    return _with(lambda env: random.random())


def global_torch() -> gym.Env[Any, Any]:
    return _with(lambda env: float(th.rand(())))


def global_draws_unseen() -> gym.Env[Any, Any]:
    """What is drawn shows so late that no play of some steps sees it."""

    def change(env: Any) -> float:
        env.sum += random.random()
        env.n += 1
        return float(env.sum if env.n % 1000 == 0 else 0.0)

    return _with(change, sum=0.0, n=0)


def _rarely(env: Any, value: float) -> float:
    """What shows so late that no play of some steps sees it."""
    env.n += 1
    return value if env.n % 1000 == 0 else 0.0


def module_global_unseen() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        global COUNT
        COUNT += 1
        return _rarely(env, COUNT)

    return _with(change, n=0)


class Part:
    """Part of an env."""

    made = [0]  # noqa: RUF012


def class_attribute_unseen() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.part.made[0] += 1
        return _rarely(env, env.part.made[0])

    return _with(change, n=0, part=Part())


def module_generator_unseen() -> gym.Env[Any, Any]:
    return _with(lambda env: _rarely(env, GENERATOR.normal()), n=0)


def _count(counted: list[int] = [0]) -> int:  # noqa: B006  the point of the test
    counted[0] += 1
    return counted[0]


def default_unseen() -> gym.Env[Any, Any]:
    return _with(lambda env: _rarely(env, _count()), n=0)


def _counter() -> Callable[[], int]:
    n = 0

    def count() -> int:
        nonlocal n
        n += 1
        return n

    return count


_counted = _counter()


def variable_unseen() -> gym.Env[Any, Any]:
    return _with(lambda env: _rarely(env, _counted()), n=0)


class Resets(Noisy):
    """Counts all episodes of all its instances, as a curriculum does."""

    episodes = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        Resets.episodes += 1
        return super().reset(**options)


def cache() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        if env.x not in CACHE:
            CACHE[env.x] = env.x**2
        return CACHE[env.x]

    return _with(change)


def tensor() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.tensor.mul_(0.9).add_(env.x)
        return float(env.tensor.sum())

    return _with(change, tensor=th.zeros(3))


class _Point(ctypes.Structure):
    x: float
    _fields_ = (("x", ctypes.c_double),)


def ctypes_structure() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.point.x = 0.5 * env.point.x + env.x
        return float(env.point.x)

    return _with(change, point=_Point())


def ctypes_address() -> gym.Env[Any, Any]:
    _KEPT.append(ctypes.create_string_buffer(8))

    def change(env: Any) -> float:
        number = ctypes.c_double.from_address(env.address)
        number.value = 0.5 * number.value + env.x
        return float(number.value)

    return _with(change, address=ctypes.addressof(_KEPT[-1]))


def closure() -> gym.Env[Any, Any]:
    n = 0

    def change(env: Any) -> float:
        nonlocal n
        n += 1
        return float(n % 5)

    return _with(change)


def clock() -> gym.Env[Any, Any]:
    return _with(lambda env: time.perf_counter())


def _serve(pipe: Any) -> None:
    for n in itertools.count():
        pipe.recv()
        pipe.send(float(n % 97))


def other_process() -> gym.Env[Any, Any]:
    near, far = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=_serve, args=(far,), daemon=True).start()
    _KEPT.append(near)  # found through a module, so that nothing in the env shows it

    def change(env: Any) -> float:
        _KEPT[env.number].send(1)
        return float(_KEPT[env.number].recv())

    return _with(change, number=len(_KEPT) - 1)


def thread() -> gym.Env[Any, Any]:
    return _with(lambda env: 0.0, worker=threading.Thread(target=time.sleep, args=(0,)))


class Shy:
    """Lets nobody look at it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not to be pickled")

    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


SHY = Shy()
UNWIELDY: dict[str, Any] = {"rows": b"x" * 900_000, "function": lambda: 0.0}


def shy() -> gym.Env[Any, Any]:
    return _with(lambda env: float(SHY is not None) + len(UNWIELDY))


class Stamped(gym.Wrapper[Any, Any, Any, Any]):
    """Notes when it was last stepped; a global of its module has the name of its attribute."""

    def step(self, action: Any) -> Any:
        self.stamp = time.perf_counter()
        return self.env.step(action)


env: Any = None


def stamped() -> gym.Env[Any, Any]:
    global env
    made: gym.Env[Any, Any] = Stamped(_with(lambda one: 0.0))
    env = made
    return made


IN_PLACE = [closure, cache, shy, stamped]
FORKED = [generator, iterator, module_global, module_table, Counting, global_numpy, global_python, global_torch]
FORKED += [global_draws_unseen, tensor, ctypes_structure, ctypes_address, module_global_unseen, class_attribute_unseen]
FORKED += [module_generator_unseen, default_unseen, variable_unseen]
REFUSED = [clock, other_process]
