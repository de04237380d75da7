"""Simulators whose state only they can save: branched exactly once an engine is registered for them."""

import ctypes
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import InPlaceEngine, engines, make_branchable, register_engine
from sb3_hybrid_grpo.branching.classes import name_of
from sb3_hybrid_grpo.branching.copies import CannotCopyError, EnvCopy
from sb3_hybrid_grpo.branching.layout import ATOMS
from sb3_hybrid_grpo.errors import BranchingError
from tests.stateful_envs import Noisy, play


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "_ENGINES", dict(engines._ENGINES))
    yield
    engines.engine_of.cache_clear()


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


class Louder(NativeWorld):
    """Adds attributes to a type written in C."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def advance(self, force: float) -> float:
        self.calls[0] += 1
        return super().advance(force) + self.calls[0]


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


def check_against_twin(make: Callable[[], gym.Env[Any, Any]]) -> None:
    env, twin = TimeLimit(make(), 13), TimeLimit(make(), 13)
    for one in (env, twin):
        one.reset(seed=3)
    engine, rng = InPlaceEngine(env), np.random.default_rng(0)
    for _ in range(15):
        snapshot = engine.save()
        branch = rng.integers(3, size=8).tolist()
        truth = play(env, branch)
        engine.restore(snapshot)
        play(env, rng.integers(3, size=5).tolist())
        engine.restore(snapshot)
        assert play(env, branch) == truth
        engine.restore(snapshot)
        actions = rng.integers(3, size=4).tolist()
        assert play(env, actions) == play(twin, actions)


@pytest.mark.parametrize("kind", [NativeWorld, World])
def test_a_simulator_is_refused_until_it_is_registered(kind: type[Any]) -> None:
    with pytest.raises(BranchingError, match=re.escape(f'register_engine("{name_of(kind)}", save, restore)')):
        InPlaceEngine(in_world(kind))
    register_native()
    register_world()
    check_against_twin(lambda: in_world(kind))


def test_a_subclass_of_a_type_without_attributes_keeps_its_own_attributes() -> None:
    register_native()
    check_against_twin(lambda: in_world(Louder))


def test_a_subclass_of_a_type_with_attributes_is_refused_until_it_is_registered() -> None:
    register_world()
    with pytest.raises(BranchingError, match=r"Noisy\.worlds\[0\]: it is a .*SmallWorld, whose base .*\.World has an engine"):
        InPlaceEngine(in_world(SmallWorld))
    register_world(SmallWorld)
    check_against_twin(lambda: in_world(SmallWorld))


class ClosedEnv(Noisy):
    """Somebody else's env, which nobody can add methods to."""

    def __init__(self) -> None:
        super().__init__(lambda env: env.world.advance(env.x))  # type: ignore[attr-defined]
        self.world = World()


def test_an_env_is_registered_and_its_random_numbers_are_saved_besides() -> None:
    def restore(env: ClosedEnv, state: Any) -> None:
        env.x = state[0]
        env.world.load(state[1])

    register_engine(name_of(ClosedEnv), lambda env: (env.x, env.world.checkpoint()), restore)
    check_against_twin(ClosedEnv)


def test_siblings_are_snapshots_and_leave_no_trace() -> None:
    register_world()
    with pytest.raises(CannotCopyError, match="has an engine"):
        EnvCopy(in_world(World))
    env, twin = make_branchable(TimeLimit(in_world(World), 9)), TimeLimit(in_world(World), 9)
    branching: Any = env
    for one in (env, twin):
        one.reset(seed=1)
    rng = np.random.default_rng(0)
    for t in range(30):
        steps = branching.step_siblings(rng.integers(3, size=2), forks=np.full(2, t % 6 == 0), keep=t % 6 < 5)
        assert isinstance(steps.rewards, list), steps
        action = [int(rng.integers(3))]
        assert play(env, action) == play(twin, action)


def test_training() -> None:
    register_world()
    env = TimeLimit(in_world(World), 20)
    model = HybridGRPO("MlpPolicy", env, n_samples=3, branch_horizon=5, n_steps=16, batch_size=24, n_epochs=1, seed=0)
    assert model.learn(32).num_simulator_steps == 96


def test_an_engine_that_forgets_state_is_found_out_before_siblings_live() -> None:
    register_engine(name_of(World), lambda world: None, lambda world, state: None)
    model = HybridGRPO("MlpPolicy", TimeLimit(in_world(World), 20), n_steps=16, batch_size=16, branching_check=False)
    with pytest.raises(BranchingError, match="whose registered engine does not save all of it"):
        model.learn(16)


def test_an_engine_that_fails_is_named() -> None:
    register_engine(name_of(World), lambda world: world.missing(), World.load)
    with pytest.raises(BranchingError, match=r"worlds\[0\]: the function registered to save a .*World raised AttributeError"):
        InPlaceEngine(in_world(World))


def test_a_type_that_was_taken_for_constant_before() -> None:
    ATOMS.add(World)
    try:
        register_world()
        assert World not in ATOMS
        check_against_twin(lambda: in_world(World))
    finally:
        ATOMS.discard(World)


def test_registering_twice() -> None:
    register_world()
    register_world()
    with pytest.raises(ValueError, match=r"World' has an engine already.*replace=True"):
        register_engine(name_of(World), lambda world: None, World.load)
    calls: list[Any] = []
    register_engine(name_of(World), calls.append, World.load, replace=True)
    InPlaceEngine(in_world(World))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("type_name", "error", "message"),
    [
        (World, TypeError, rf"got the type itself\. Pass '{name_of(World)}'"),
        (7, TypeError, "must be a string.*got 7"),
        ("World", ValueError, "must be the full name.*got 'World'"),
        ("mysim.core.", ValueError, "must be the full name"),
        ("mysim core.World", ValueError, "must be the full name"),
        ("builtins.dict", ValueError, r"got 'builtins\.dict'.*register the type of the object that holds"),
        ("numpy.ndarray", ValueError, "must be that of a simulator's type"),
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


class _Saves:
    """A function that has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, world: NativeWorld) -> tuple[float, int]:
        return world.x, world.n


def test_functions_need_no_hash() -> None:
    def restore(world: NativeWorld, state: tuple[float, int]) -> None:
        world.x, world.n = state

    register_engine(name_of(NativeWorld), save=_Saves(), restore=restore)
    env: Any = Noisy()
    env.world = NativeWorld()
    engine = InPlaceEngine(env)
    snapshot = engine.save()
    env.world.advance(1.0)
    engine.restore(snapshot)
    assert (env.world.x, env.world.n) == (0.0, 0)
