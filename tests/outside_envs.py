"""Envs that keep state where a snapshot in place does not see it, for tests of the check and of forks."""

import concurrent.futures
import contextvars
import ctypes
import enum
import itertools
import mmap
import multiprocessing
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
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


def generator_in_a_queue() -> gym.Env[Any, Any]:
    jobs: queue.Queue[Any] = queue.Queue()
    jobs.put(float(n % 7) for n in itertools.count())
    return _with(lambda env: next(env.jobs.queue[0]), jobs=jobs)


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
    _KEPT.append(near)

    def change(env: Any) -> float:
        _KEPT[env.number].send(1)
        return float(_KEPT[env.number].recv())

    return _with(change, number=len(_KEPT) - 1, pipe=near)


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


class Settings:
    """A class that an env holds and changes."""

    level = 0


def class_of_its_own() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.settings.level += 1
        return _rarely(env, env.settings.level)

    return _with(change, n=0, settings=Settings)


class Mode(enum.Enum):
    """Members that carry state."""

    CALM = 1

    def __init__(self, number: int) -> None:
        self.count = number


def enum_member() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.mode.count += 1
        return _rarely(env, env.mode.count)

    return _with(change, n=0, mode=Mode.CALM)


LEVEL: contextvars.ContextVar[int] = contextvars.ContextVar("LEVEL", default=0)


def context_variable() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        LEVEL.set(LEVEL.get() + 1)
        return _rarely(env, LEVEL.get())

    return _with(change, n=0)


def environment_variable() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        os.environ["OUTSIDE_ENVS"] = str(int(os.environ.get("OUTSIDE_ENVS", "0")) + 1)
        return _rarely(env, int(os.environ["OUTSIDE_ENVS"]))

    return _with(change, n=0)


GUSTS: dict[tuple[int, int], float] = {}


def memoised_noise() -> gym.Env[Any, Any]:
    """Noise that is drawn once for a step and kept in the module."""

    def change(env: Any) -> float:
        env.n += 1
        key = id(env.spec_of_all), env.n
        if key not in GUSTS:
            GUSTS[key] = float(env.own.normal())
        return GUSTS[key]

    GUSTS.clear()
    return _with(change, n=0, spec_of_all=Settings, own=np.random.default_rng(5))


WINS = {"count": 0}


class Wins(Noisy):
    """Counts won episodes in its module."""

    t = 0

    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        self.t += 1
        WINS["count"] += self.t == 60
        return observation, reward, False, self.t >= 60, {}


def by_identity() -> gym.Env[Any, Any]:
    def change(env: Any) -> float:
        env.n += 1
        return float(env.table.get(id(env.part), 0.0) if env.n > 6 else 0.0)

    part = [1.0]
    return _with(change, n=0, part=part, table={id(part): 5.0})


def mapped() -> gym.Env[Any, Any]:
    return _with(lambda env: 0.0, memory=mmap.mmap(-1, 8))


def mapped_global(folder: Path) -> gym.Env[Any, Any]:
    np.save(folder / "table.npy", np.zeros(2))
    table = np.load(folder / "table.npy", mmap_mode="r+")

    class Mapped(Noisy):
        def step(self, action: Any) -> Any:
            table[1] += 1
            observation, _, *rest = super().step(action)
            return observation, float(table[1]), *rest

    return Mapped(lambda env: 0.0)


def executor() -> gym.Env[Any, Any]:
    return _with(lambda env: 0.0, workers=concurrent.futures.ThreadPoolExecutor(1))


def tool_of_a_class_made_in_a_function() -> gym.Env[Any, Any]:
    env = _with(lambda env: env.tool.hit(), n=0)

    class Tool:
        def hit(self) -> float:
            env.n += 1  # type: ignore[attr-defined]
            return float(env.n > 1000)  # type: ignore[attr-defined]

    env.tool = Tool()  # type: ignore[attr-defined]
    return env


class Unseeded(Noisy):
    """Takes fresh entropy at each reset without a seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.own = np.random.default_rng(seed)
        return super().reset(seed=seed)


class LazySpace(gym.Env[Any, Any]):
    """Draws its observations from its space, as examples do."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(3, np.float32), {}

    def draw(self) -> Any:
        return self.observation_space.sample()

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.draw(), 0.0, self.t >= 20, False, {}


class NoSeed(LazySpace):
    """Has a generator once it is asked for one."""

    def draw(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class LazyGenerator(LazySpace):
    """Makes a generator when it needs one."""

    own: Any = None

    def draw(self) -> Any:
        if self.own is None:
            self.own = np.random.default_rng()
        return self.own.uniform(-1, 1, 3).astype(np.float32)


class _SharedSpaces(LazySpace):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.t = 0


def class_space() -> gym.Env[Any, Any]:
    return _SharedSpaces()


def class_generator() -> gym.Env[Any, Any]:
    return _with(lambda env: float(env.draws.normal()), draws=_Draws())


class _Draws:
    rng = np.random.default_rng(1)

    def normal(self) -> float:
        return float(self.rng.normal())


class Slow(LazySpace):
    """Takes 50 ms a step."""

    def step(self, action: Any) -> Any:
        time.sleep(0.05)
        return super().step(action)


class Raises(LazySpace):
    """Cannot be stepped."""

    def step(self, action: Any) -> Any:
        raise ValueError("broken")


def _described(*arguments: Any) -> Callable[[Any], str]:
    return lambda self: f"{arguments}"


class Library:
    """Has thousands of closures of one function."""


for _number in range(5_000):
    setattr(Library, f"method_{_number}", _described(_number, "x" * 50))


def closures() -> gym.Env[Any, Any]:
    return _with(lambda env: float(Library is not None))


COPIED = [closure, cache, shy, stamped, iterator, tensor, class_generator, class_space]
COPIED += [global_numpy, global_python, global_torch, global_draws_unseen, module_generator_unseen]
FORKED = [generator, module_global, module_table, Counting, ctypes_structure, ctypes_address]
FORKED += [module_global_unseen, class_attribute_unseen, default_unseen, variable_unseen]
FORKED += [
    tool_of_a_class_made_in_a_function,
    class_of_its_own,
    enum_member,
    context_variable,
    environment_variable,
    memoised_noise,
    by_identity,
]
REFUSED = [other_process, thread, executor, mapped]
