"""Simulators that only they themselves can copy or save: branched exactly once it is said how."""

import ctypes
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import (
    declare_constant,
    engines,
    fork_env,
    make_branchable,
    register_copier,
    register_engine,
)
from sb3_hybrid_grpo.branching.engines import name_of
from tests.stateful_envs import Noisy, play


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_REGISTERED", "CONSTANTS"):
        monkeypatch.setattr(engines, name, dict(getattr(engines, name)))
    yield
    for one in engines.CACHES:
        one.cache_clear()


class NativeWorld(ctypes.Structure):
    """Fields in C."""

    __slots__ = ()
    x: float
    n: int
    _fields_ = (("x", ctypes.c_double), ("n", ctypes.c_int))

    def advance(self, force: float) -> float:
        self.n += 1
        self.x = 0.5 * self.x + force + self.n % 3
        return self.x


class World:
    """State in a running generator, which nothing but its methods can read and set."""

    def __init__(self) -> None:
        self.loop = self._run(0.0, 0)
        next(self.loop)

    def _run(self, x: float, n: int) -> Generator[Any, Any, None]:
        while True:
            order = yield x, n
            if isinstance(order, tuple):
                x, n = order
            elif order is not None:
                x, n = 0.5 * x + order + n % 3, n + 1

    def advance(self, force: float) -> float:
        return float(self.loop.send(force)[0])

    def checkpoint(self) -> Any:
        return self.loop.send(None)

    def load(self, state: Any) -> None:
        self.loop.send(state)


class SmallWorld(World):
    """A subclass in Python."""


def in_world(make: Callable[[], Any]) -> gym.Env[Any, Any]:
    env = Noisy(lambda env: env.worlds[0].advance(env.x))  # type: ignore[attr-defined]
    env.worlds = [make()]  # type: ignore[attr-defined]
    return env


def register_native() -> None:
    def restore(world: Any, state: bytes) -> None:
        ctypes.memmove(ctypes.addressof(world), state, len(state))

    register_engine(name_of(NativeWorld), bytes, restore)


def register_world(kind: type[World] = World) -> None:
    register_engine(name_of(kind), World.checkpoint, World.load)


def kind_of(make: Callable[[], gym.Env[Any, Any]]) -> str:
    env = make()
    env.reset(seed=0)
    (sibling,) = fork_env(env, 1)
    return sibling.kind


def check_against_twin(make: Callable[[], gym.Env[Any, Any]]) -> None:
    env, twin = TimeLimit(make(), 13), TimeLimit(make(), 13)
    for one in (env, twin):
        one.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(15):
        siblings: Any = fork_env(env, 2)
        assert [one.kind for one in siblings] == ["copied"] * 2
        branch, other = rng.integers(3, size=8).tolist(), rng.integers(3, size=5).tolist()
        play(siblings[1], other[:2])
        seen = play(siblings[0], branch)
        play(siblings[1], other[2:])
        again: Any = fork_env(env, 1)[0]
        assert play(again, branch) == seen
        actions = rng.integers(3, size=4).tolist()
        assert play(env, actions) == play(twin, actions)


@pytest.mark.parametrize("kind", [NativeWorld, World])
@pytest.mark.filterwarnings("ignore:Each sibling of")
def test_a_simulator_is_forked_until_it_is_registered(kind: type[Any]) -> None:
    assert kind_of(lambda: in_world(kind)) == "forked"
    register_native()
    register_world()
    check_against_twin(lambda: in_world(kind))


@pytest.mark.filterwarnings("ignore:Each sibling of")
def test_a_subclass_is_forked_until_it_is_registered() -> None:
    register_world()
    with pytest.warns(UserWarning, match=r"Noisy\.worlds\[0\] is a .*SmallWorld, a subclass of .*\.World: register"):
        assert kind_of(lambda: in_world(SmallWorld)) == "forked"
    register_world(SmallWorld)
    check_against_twin(lambda: in_world(SmallWorld))


def test_a_copier_is_the_fast_way() -> None:
    def clone(world: Any) -> Any:
        made = type(world)()
        made.load(world.checkpoint())
        return made

    register_copier(name_of(World), clone)
    env = in_world(World)
    check_against_twin(lambda: in_world(World))
    env.reset(seed=0)
    (sibling,) = fork_env(env, 1)
    assert sibling.env.worlds[0] is not env.worlds[0]  # type: ignore[union-attr, attr-defined]


class ClosedEnv(Noisy):
    """Somebody else's env, which nobody can add methods to."""

    def __init__(self) -> None:
        super().__init__(lambda env: env.world.advance(env.x))  # type: ignore[attr-defined]
        self.world = World()


def test_an_env_is_registered() -> None:
    def restore(env: ClosedEnv, state: Any) -> None:
        env.x, env.np_random.bit_generator.state = state[0], state[2]
        env.world.load(state[1])

    def save(env: ClosedEnv) -> Any:
        return env.x, env.world.checkpoint(), env.np_random.bit_generator.state

    register_engine(name_of(ClosedEnv), save, restore)
    check_against_twin(ClosedEnv)


class SavesItself(Noisy):
    """Knows best; its ``np_random`` is saved besides."""

    def __init__(self) -> None:
        super().__init__(lambda env: env.world.advance(env.x))  # type: ignore[attr-defined]
        self.world = World()

    def save_state(self) -> Any:
        return self.x, self.world.checkpoint()

    def restore_state(self, state: Any) -> None:
        self.x = state[0]
        self.world.load(state[1])


def test_an_env_that_saves_itself_is_shared() -> None:
    check_against_twin(SavesItself)
    env = SavesItself()
    env.reset(seed=0)
    (sibling,) = fork_env(TimeLimit(env, 5), 1)
    assert sibling.env.env is env  # type: ignore[union-attr]


def test_tables_that_are_declared_constant_are_shared() -> None:
    env: Any = Noisy()
    env.table, env.state = [[1.0]], [0.0]
    declare_constant(name_of(Noisy), "table")
    env.reset(seed=0)
    (sibling,) = fork_env(env, 1)
    assert sibling.env.table is env.table and sibling.env.state is not env.state  # type: ignore[union-attr]
    taxi: Any = gym.make("Taxi-v4").unwrapped
    taxi.reset(seed=0)
    assert fork_env(taxi, 1)[0].env.P is taxi.P  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="must be one or more names"):
        declare_constant(name_of(Noisy))


def test_siblings_leave_no_trace() -> None:
    register_world()
    env, twin = make_branchable(TimeLimit(in_world(World), 9)), TimeLimit(in_world(World), 9)
    branching: Any = env
    for one in (env, twin):
        one.reset(seed=1)
    rng = np.random.default_rng(0)
    for t in range(30):
        steps = branching.step_siblings(rng.integers(3, size=2), [t % 6 == 0] * 2)
        assert isinstance(steps.rewards, list), steps
        action = [int(rng.integers(3))]
        assert play(env, action) == play(twin, action)


def test_training() -> None:
    register_world()
    env = TimeLimit(in_world(World), 20)
    model = HybridGRPO("MlpPolicy", env, n_samples=4, branch_horizon=5, n_steps=64, batch_size=64, n_epochs=1, seed=0)
    assert model.learn(64).num_timesteps == 64


@pytest.mark.filterwarnings("ignore:Each sibling of")
def test_an_engine_that_forgets_state_is_found_out() -> None:
    register_engine(name_of(World), lambda world: None, lambda world, state: None)
    branching: Any = make_branchable(TimeLimit(in_world(World), 20))
    branching.reset(seed=0)
    assert branching.check_siblings() is None
    assert branching.sibling_maker.forks and "differently" in branching.sibling_maker.reasons[0]


def test_an_engine_that_fails_is_named() -> None:
    register_engine(name_of(World), lambda world: world.missing(), World.load)
    with pytest.warns(UserWarning, match=r"worlds\[0\] is a .*World, and copying or saving it raised AttributeError"):
        assert kind_of(lambda: in_world(World)) == "forked"


def test_a_later_registration_replaces_an_earlier_one() -> None:
    calls: list[Any] = []
    register_engine(name_of(World), lambda world: None, World.load)
    register_engine(name_of(World), calls.append, World.load)
    kind_of(lambda: in_world(World))
    assert calls
    register_world()
    assert kind_of(lambda: in_world(World)) == "copied"


@pytest.mark.parametrize(
    ("type_name", "error", "message"),
    [
        (World, TypeError, rf"got the type itself\. Pass '{name_of(World)}'"),
        (7, TypeError, "must be a string.*got 7"),
        ("World", ValueError, "must be the full name.*got 'World'"),
        ("mysim.core.", ValueError, "must be the full name"),
        ("mysim core.World", ValueError, "must be the full name"),
        ("builtins.dict", ValueError, r"got 'builtins\.dict'.*register the type of the object that holds"),
        ("numpy.ndarray", ValueError, "must name a simulator's type"),
    ],
)
def test_names_that_are_refused(type_name: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_engine(type_name, bytes, lambda obj, state: None)


def test_functions_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"save must be a function save\(obj\), got None"):
        register_engine("mysim.World", None, lambda obj, state: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"restore must be a function restore\(obj, state\), got 3"):
        register_engine("mysim.World", bytes, 3)  # type: ignore[arg-type]
