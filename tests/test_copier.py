"""Copies of envs: exact, and of their own, whatever the env is made of."""

import gc
import mmap
import random
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_hybrid_grpo.branching import fork_env
from sb3_hybrid_grpo.branching.copier import Copier
from sb3_hybrid_grpo.branching.engines import CannotCopyError
from sb3_hybrid_grpo.branching.sibling import CopiedEnv
from tests.object_graphs import examine
from tests.stateful_envs import STATES, Noisy, noisy, play
from tests.typed_envs import TYPES, Demand, env_with

PLANS = ([0, 1, 2, 2, 0, 1] * 3, [2, 2, 1, 0, 0, 2] * 3, [1, 0, 2, 1, 1, 0] * 3)


def assert_copies_are_exact(make: Callable[[], gym.Env[Any, Any]], steps: int = 3) -> None:
    """Copies play other actions and the plan; then the env plays the plan, and a twin that was never copied."""
    env, twin = make(), make()
    for one in (env, twin):
        one.reset(seed=1)
        one.action_space.seed(2)
        play(one, [1] * steps)
    other, mirror, third = fork_env(env, 3)
    assert {other.kind, mirror.kind, third.kind} == {"copied"}
    lived = play(other, PLANS[1])  # type: ignore[arg-type]
    seen = play(mirror, PLANS[0])  # type: ignore[arg-type]
    assert play(third, PLANS[1]) == lived  # type: ignore[arg-type]
    assert play(env, PLANS[0]) == seen
    assert play(twin, PLANS[0]) == seen
    grandchild = fork_env(fork_env(env, 1)[0], 1)[0]  # type: ignore[arg-type]
    assert play(grandchild, PLANS[2]) == play(env, PLANS[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("add", STATES, ids=lambda one: one.__name__)
def test_state_of_any_kind_is_copied(add: Any) -> None:
    assert_copies_are_exact(noisy(add))


@pytest.mark.parametrize("name", TYPES)
def test_objects_of_many_types_are_copied(name: str) -> None:
    assert_copies_are_exact(lambda: env_with(TYPES[name]))


def _pygame() -> Any:
    pygame = pytest.importorskip("pygame")
    env: Any = Noisy()
    env.rect, env.pos, env.group = pygame.Rect(0, 0, 4, 4), pygame.Vector2(0, 0), pygame.sprite.Group()
    env.sprite = pygame.sprite.Sprite(env.group)
    env.sprite.rect = env.rect
    env.surface, env.color = pygame.Surface((4, 4)), pygame.Color(1, 2, 3)
    env.part, env.clock = env.surface.subsurface((1, 1, 2, 2)), pygame.time.Clock()

    def change(env: Any) -> float:
        env.rect.move_ip(2, 0)
        env.pos.update(env.pos.x + 1, 0)
        env.color.r = (env.color.r + 1) % 256
        env.part.set_at((0, 0), env.color)
        if len(env.group) < 3:
            pygame.sprite.Sprite(env.group)
        seen = sum(one.rect.x for one in env.group if one.rect is not None)
        return float(seen + env.pos.x + env.surface.get_at((1, 1)).r + len(env.group))

    env.change = change
    return env


def _pandas() -> Any:
    pd = pytest.importorskip("pandas")
    env: Any = Noisy()
    env.table = pd.DataFrame({"close": np.arange(9.0), "name": list("abcdefghi"), "when": pd.date_range("2020", periods=9)})
    env.series = env.table["close"].copy()
    env.kinds = pd.Series(["a", "b", "a"], dtype="category")
    env.lists = pd.Series([[0], [1]])
    env.at = env.table.iloc
    env.step_size, env.day = pd.offsets.Hour(), pd.Period("2020-01-01")
    env.missing, env.interval = pd.NA, pd.Interval(0, 3)

    def change(env: Any) -> float:
        env.table.loc[0, "close"] += 1
        env.series.iloc[1] += 2
        env.lists.iloc[0].append(1)
        env.n = getattr(env, "n", 0) + 1
        env.table.loc[0, "when"] += env.step_size
        env.day += int(env.n in env.interval)
        return float(
            env.table["close"].sum()
            + env.series.sum()
            + len(env.lists.iloc[0])
            + env.at[env.n % 9]["close"]
            + len(env.kinds)
            + env.table["when"][0].hour
            + env.day.day
        )

    env.change = change
    return env


def _networkx() -> Any:
    networkx = pytest.importorskip("networkx")
    env: Any = Noisy()
    env.graph, env.nodes = networkx.DiGraph(), [object(), Noisy()]
    env.graph.add_edge(*env.nodes, weight=1.0)
    env.view = env.graph.adj

    def change(env: Any) -> float:
        env.graph.add_node(len(env.graph))
        env.graph.edges[env.nodes[0], env.nodes[1]]["weight"] += 1
        return float(len(env.graph) + env.view[env.nodes[0]][env.nodes[1]]["weight"] + networkx.density(env.graph))

    env.change = change
    return env


def _scipy() -> Any:
    """Tables and orientations, which never change."""
    spatial, interpolate = (pytest.importorskip(f"scipy.{name}") for name in ("spatial", "interpolate"))
    env: Any = Noisy()
    points = np.random.default_rng(0).uniform(-9, 9, (20, 2))
    env.tree, env.turned = spatial.KDTree(points), spatial.transform.Rotation.from_euler("z", 0.1)
    env.tables = [interpolate.LinearNDInterpolator(points, points.sum(axis=1), 0.0)]
    env.tables += [interpolate.RBFInterpolator(points, points.sum(axis=1)), interpolate.CubicSpline([0, 1, 3], [0, 1, 2])]
    env.place = np.zeros(3)

    def change(env: Any) -> float:
        env.place = env.turned.apply(env.place + 1)
        env.turned = env.turned * env.turned
        seen = [float(np.sum(table(env.place[:2][None]))) for table in env.tables]
        return float(sum(seen) + env.tree.query(env.place[:2])[1])

    env.change = change
    return env


def _matplotlib() -> Any:
    """A window, which only ``render`` draws."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    env: Any = Noisy()
    env.figure, env.axes = figure, figure.add_subplot()
    (env.line,) = env.axes.plot([0, 1])

    def change(env: Any) -> float:
        env.n = getattr(env, "n", 0) + 1
        return float(env.n)

    env.change = change
    return env


@pytest.mark.parametrize("make", (_pygame, _pandas, _networkx, _scipy, _matplotlib), ids=lambda one: one.__name__)
def test_objects_of_libraries_are_copied(make: Callable[[], Noisy]) -> None:
    assert_copies_are_exact(make)


def test_tables_are_copied_also_where_pandas_copies_on_write() -> None:
    """Then pandas shows all arrays as read-only."""
    pd = pytest.importorskip("pandas")

    def make() -> Any:
        env: Any = Noisy()
        env.table, env.series = pd.DataFrame({"x": np.arange(9.0), "y": np.arange(9)}), pd.Series(np.arange(3.0))

        def change(env: Any) -> float:
            env.table.loc[0, "x"] += 1
            env.series.iloc[1] += 2
            return float(env.table["x"].sum() + env.series.sum())

        env.change = change
        return env

    with pd.option_context("mode.copy_on_write", True):
        assert_copies_are_exact(make)


class Legal(spaces.Discrete):
    """A space of a user's own, with state."""

    def __init__(self) -> None:
        super().__init__(3)
        self.lost: list[int] = []


def test_spaces_are_copied_with_their_state() -> None:
    def make() -> Any:
        env: Any = Noisy()
        env.legal, env.plain = Legal(), spaces.Discrete(2)

        def change(env: Any) -> float:
            env.legal.lost.append(1)
            env.plain.n += 1
            return float(len(env.legal.lost) + env.plain.n)

        env.change = change
        return env

    assert_copies_are_exact(make)


class Cell:
    """A place of a grid that knows its neighbours."""

    def __init__(self) -> None:
        self.neighbours: list[Cell] = []
        self.visits = 0


def test_a_grid_of_linked_cells_is_copied() -> None:
    def make() -> Any:
        env: Any = Noisy()
        cells = np.array([Cell() for _ in range(400)], dtype=object).reshape(20, 20)
        for ones, others in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
            for one, other in zip(ones.flat, others.flat, strict=True):
                one.neighbours.append(other)
                other.neighbours.append(one)
        env.at = cells[3, 4]

        def change(env: Any) -> float:
            env.at = env.at.neighbours[env.at.visits % 2]
            env.at.visits += 1
            return float(env.at.visits)

        env.change = change
        return env

    before = sys.getrecursionlimit()
    assert_copies_are_exact(make)
    assert sys.getrecursionlimit() == before


class Closing(Noisy):
    """Closes itself when it is deleted, as some published envs do."""

    closed: ClassVar[list[int]] = []

    def close(self) -> None:
        self.closed.append(id(self))

    def __del__(self) -> None:
        self.close()


def test_a_copy_of_an_env_is_not_closed_when_it_is_deleted() -> None:
    assert_copies_are_exact(Closing)
    env = Closing()
    env.reset(seed=0)
    Closing.closed.clear()
    for _ in range(3):
        copy: Any = fork_env(env, 1)[0]
        copy_of_copy: Any = fork_env(copy.env, 1)[0]
        assert isinstance(copy_of_copy.env, Closing) and type(copy.env).__name__ == "Closing"
        del copy, copy_of_copy
    gc.collect()
    assert Closing.closed == []
    own = id(env)
    del env
    gc.collect()
    assert Closing.closed == [own]


def test_another_object_that_runs_code_when_it_is_deleted_is_refused() -> None:
    world: Any = type("World", (), {"__del__": lambda self: None})()
    with pytest.raises(CannotCopyError, match="World, which runs code when it is deleted"):
        Copier()(world)


def test_frozen_tables_are_shared() -> None:
    pd = pytest.importorskip("pandas")
    env: Any = Noisy()
    env.array, env.table = np.zeros(1000), pd.DataFrame({"x": np.zeros(1000)})
    env.frozen = np.zeros(1000)
    env.frozen.flags.writeable = False
    (copy,) = fork_env(env, 1)
    copy_env: Any = copy.env  # type: ignore[union-attr]
    assert copy_env.frozen is env.frozen
    assert copy_env.array is not env.array
    assert copy_env.table is not env.table


@pytest.mark.parametrize("first", range(0, 300, 60))
def test_any_graph_of_objects_is_copied(first: int) -> None:
    for seed in range(first, first + 60):
        examine(seed)


class ViewsOfMujoco(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps arrays that view the simulator's memory, as dm_control's ``physics.named`` does, and acts through them."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        data, model = self.unwrapped.data, self.unwrapped.model  # type: ignore[attr-defined]
        self.angles, self.masses, self.warnings = data.qpos[2:], model.body_mass, data.warning.number
        self.speed: Any = weakref.proxy(data.qvel)

    def step(self, action: Any) -> Any:
        self.angles[0] += 0.01 * self.speed[0]
        return super().step(action)


def views_of_mujoco() -> Any:
    pytest.importorskip("mujoco")
    env = ViewsOfMujoco(gym.make("HalfCheetah-v5"))
    env.reset(seed=1)
    return env


@pytest.mark.parametrize("own_models", [False, True])
def test_views_of_mujocos_memory_are_views_of_the_copys(own_models: bool) -> None:
    env = views_of_mujoco()
    rng, previous = np.random.default_rng(0), None
    for _ in range(3):
        previous = copied = CopiedEnv(env, previous, own_models)
        made, plan = copied.env, rng.uniform(-1, 1, (8, 6))
        assert np.shares_memory(made.angles, made.unwrapped.data.qpos) and made.angles.shape == env.angles.shape
        assert np.shares_memory(made.warnings, made.unwrapped.data.warning.number)
        assert np.shares_memory(made.masses, env.masses) is not own_models
        assert not np.shares_memory(made.angles, env.angles)
        seen = [copied.step(action)[:2] for action in plan]
        np.testing.assert_equal(seen, [env.step(action)[:2] for action in plan])


def test_a_view_of_another_simulator_is_refused() -> None:
    env, other = views_of_mujoco(), views_of_mujoco()
    env.angles = other.angles
    with pytest.raises(CannotCopyError, match="is a view of memory that belongs to an object written in C"):
        CopiedEnv(env)


def test_dm_controls_named_arrays_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    index = types.ModuleType("dm_control.mujoco.index")
    exec(  # dm_control makes a class for each simulator, with the arrays as its attributes
        "def make_struct_indexer(arrays):\n"
        "    class StructIndexer:\n"
        "        __slots__ = ()\n"
        "        def _asdict(self):\n"
        "            return arrays.copy()\n"
        "    for name, array in arrays.items():\n"
        "        setattr(StructIndexer, name, array)\n"
        "    return StructIndexer()\n",
        vars(index),
    )
    monkeypatch.setitem(sys.modules, index.__name__, index)
    env = views_of_mujoco()
    env.named = index.make_struct_indexer({"angles": env.angles})
    made = CopiedEnv(env).env
    assert made.named.angles is made.angles and env.named.angles is env.angles


def test_a_view_of_memory_that_never_changes_is_shared() -> None:
    class Buffer(bytes):
        """As a JAX array, it never changes, because of the package it comes from."""

        __module__ = "jax"

    env: Any = Noisy()
    env.view = np.frombuffer(Buffer(bytes(24)), dtype=float)[1:]
    assert CopiedEnv(env).env.view is env.view


def test_a_writeable_view_of_a_read_only_array_is_refused() -> None:
    env: Any = Noisy()
    env.table = np.zeros(3)
    env.view = env.table[:]
    env.table.flags.writeable = False
    assert env.view.flags.writeable
    with pytest.raises(CannotCopyError, match="is a writeable view of an array that is read-only"):
        CopiedEnv(env)


@pytest.mark.parametrize("name", ["qpos", "efc_force"])
def test_a_slice_of_a_read_only_view_of_mujocos_memory_is_no_constant(name: str) -> None:
    env = views_of_mujoco()
    whole = getattr(env.unwrapped.data, name)
    if not whole.size:
        env.step(np.zeros(6))
        whole = getattr(env.unwrapped.data, name)
    whole.flags.writeable = False
    env.part = whole[:1]
    assert not np.shares_memory(CopiedEnv(env).env.part, whole)


class MovesTheGround(gym.Wrapper[Any, Any, Any, Any]):
    """Changes the simulator's model in each reset, as some of dm_control's tasks do."""

    def reset(self, **keywords: Any) -> Any:
        found = super().reset(**keywords)
        self.unwrapped.model.geom_pos[0, 2] = self.np_random.uniform(-1, 1)  # type: ignore[attr-defined]
        return found


def test_forks_that_are_not_checked_have_a_model_of_their_own() -> None:
    pytest.importorskip("mujoco")
    env: Any = MovesTheGround(gym.make("HalfCheetah-v5"))
    env.reset(seed=1)
    before = env.unwrapped.model.geom_pos.copy()
    one, other = fork_env(env, 2)
    one.reset(seed=77)
    assert np.array_equal(env.unwrapped.model.geom_pos, before)
    assert np.array_equal(other.env.unwrapped.model.geom_pos, before)  # type: ignore[union-attr]
    assert not np.array_equal(one.env.unwrapped.model.geom_pos, before)  # type: ignore[union-attr]


@pytest.mark.parametrize("view", [lambda table: table, np.asarray, lambda table: table[1:]])
def test_a_file_mapped_read_only_is_shared_and_a_writeable_one_is_refused(tmp_path: Path, view: Any) -> None:
    np.save(tmp_path / "table.npy", np.arange(4.0))
    table = view(np.load(tmp_path / "table.npy", mmap_mode="r"))
    assert Copier()(table) is table
    with pytest.raises(CannotCopyError, match="is memory that forked processes share"):
        Copier()(view(np.load(tmp_path / "table.npy", mmap_mode="r+")))


def test_attributes_of_a_generator_are_as_they_are_now_in_each_copy() -> None:
    demand, reuse = Demand(3), None
    for _ in range(3):
        demand.next()
        copier = Copier(reuse)
        made, reuse = copier(demand), copier.natives
        assert made is not demand and made.level == demand.level
        assert (made.random(), made.gauss(0, 1)) == (demand.random(), demand.gauss(0, 1))


@pytest.mark.parametrize("kind", ["method", "property", "static", "container", "wrapper"])
def test_a_class_made_in_a_function_that_uses_its_variable_for_the_env_is_refused(kind: str) -> None:
    env: Any = Noisy(lambda env: 0.0)

    class Method:
        def hit(self) -> Any:
            return env.x

    class Property:
        @property
        def hit(self) -> Any:
            return env.x

    class Static:
        @staticmethod
        def hit() -> Any:
            return env.x

    class Container(dict[str, Any]):
        def hit(self) -> Any:
            return env.x

    class Wrapper(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return env.step(action)

    made = {"method": Method, "property": Property, "static": Static, "container": Container}
    env.tool = made[kind]() if kind in made else None
    with pytest.raises(CannotCopyError, match="a class made in a function"):
        Copier()(Wrapper(env) if kind == "wrapper" else env)


def test_a_read_only_array_over_writeable_memory_of_a_file_is_refused() -> None:
    memory = mmap.mmap(-1, 8)
    view = np.frombuffer(memory, np.uint8)
    view.flags.writeable = False
    with pytest.raises(CannotCopyError, match="is memory that forked processes share"):
        Copier()(view)


class Slotted(random.Random):
    """Has a slot, a constructor that needs an argument, and a state of its own."""

    __slots__ = ("level",)

    def __new__(cls, level: list[int]) -> "Slotted":
        return super().__new__(cls)

    def __init__(self, level: list[int]) -> None:
        super().__init__(3)
        self.level = level

    def getstate(self) -> Any:
        return self.level


def test_a_generator_with_a_slot_and_a_state_of_its_own_is_copied() -> None:
    one = Slotted([1])
    made = Copier()(one)
    assert made.level == [1] and made.level is not one.level
    assert made.random() == one.random()
