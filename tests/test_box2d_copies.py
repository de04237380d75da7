"""A copy of an env with a Box2D world is another world, in which the same happens."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo.branching import InPlaceEngine, make_branchable
from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d import memory_of
from sb3_hybrid_grpo.branching.box2d_copies import WorldCopy
from sb3_hybrid_grpo.branching.box2d_layout import BODIES, UnknownMemoryError, read_pointer
from sb3_hybrid_grpo.branching.box2d_memory import Chunk, WorldMemory
from sb3_hybrid_grpo.branching.copies import CannotCopyError, EnvCopy
from sb3_hybrid_grpo.branching.memory import MEMORY_START, memory
from tests.stateful_envs import Noisy, play

Box2D = pytest.importorskip("Box2D")
pytest.importorskip("pygame")
from tests.box2d_envs import Machine, interrupted  # noqa: E402

MAKERS: dict[str, tuple[Callable[[], gym.Env[Any, Any]], int]] = {
    "machine": (lambda: gym.wrappers.TimeLimit(Machine(), 60), 150),
    "lander": (lambda: gym.make("LunarLander-v3", enable_wind=True, render_mode="rgb_array"), 250),
    "walker": (lambda: gym.make("BipedalWalker-v3", max_episode_steps=60), 120),
    "hardcore": (lambda: gym.make("BipedalWalkerHardcore-v3", max_episode_steps=60), 60),
}


@pytest.mark.parametrize("name", MAKERS)
def test_copies_go_on_like_the_env_and_leave_it_alone(name: str) -> None:
    make, n_steps = MAKERS[name]
    env, twin = make(), make()
    for one in (env, twin):
        one.reset(seed=2)
    env.action_space.seed(0)
    engine = InPlaceEngine(env)
    copies: list[EnvCopy] = []
    for t in range(n_steps):
        actions = [env.action_space.sample() for _ in range(12)]
        if t % 5 == 0:
            snapshot = engine.save()
            copies = [EnvCopy(env), EnvCopy(env, copies[0] if copies else None)]
            seen = [play(copies[0].env, actions[:6]), play(copies[1].env, actions[:6])]
            again = EnvCopy(copies[1].env)  # a copy of a copy
            seen = [one + play(copy.env, actions[6:]) for one, copy in zip(seen, (copies[0], again), strict=True)]
            play(copies[1].env, actions[::-1])
            truth = play(env, actions)
            assert seen == [truth, truth], f"step {t}"
            engine.restore(snapshot)
        assert play(env, actions[:1]) == play(twin, actions[:1]), f"step {t}"


def _free_blocks(world: Any) -> int:
    """Follow the lists of free blocks; each is to be in a chunk of the world, and there once."""
    entries = np.frombuffer(memory_of(world)._entries(), np.int64).tolist()
    found = set()
    for index, size in enumerate((16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640)):
        starts = [start for its, start in zip(entries[::2], entries[1::2], strict=True) if its & 0xFFFFFFFF == size]
        block = read_pointer(int(world.this) + at.FREE_BLOCKS + 8 * index)
        while block:
            assert block not in found
            assert any(0 <= block - start <= at.CHUNK_SIZE - size and (block - start) % size == 0 for start in starts)
            found.add(block)
            block = read_pointer(block)
    return len(found)


@pytest.mark.parametrize("name", ["machine", "lander"])
def test_no_block_is_lost_or_given_twice_in_a_long_life(name: str) -> None:
    env = MAKERS[name][0]()
    env.reset(seed=4)
    env.action_space.seed(0)
    copies: list[EnvCopy] = []
    most = 0
    for fork in range(8):
        copies = [EnvCopy(env, copies[0] if copies else None), EnvCopy(env, copies[1] if copies else None)]
        for _ in range(64):
            for one in (env, *(copy.env for copy in copies)):
                play(one, [one.action_space.sample()])
                world = one.unwrapped.world  # type: ignore[attr-defined]
                image = memory_of(world).save()
                n_used = len(image.structure.bodies) + 3 * len(image.structure.fixtures) + len(image.structure.joints)
                n_used += len(world.contacts)
                sizes = np.frombuffer(image.entries, np.int64)[::2] & 0xFFFFFFFF
                assert _free_blocks(world) + n_used == (at.CHUNK_SIZE // sizes).sum(), f"fork {fork}"
                most = max(most, len(image.structure.bodies))
    assert most > 20


def test_chunks_are_freed_when_the_world_lists_them_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Machine()
    env.reset(seed=0)
    copy = EnvCopy(env)
    its: Any = copy.env
    freed = []
    free: Any = Chunk.__del__

    def watch(chunk: Chunk) -> None:
        if not chunk.is_listed:
            freed.append(chunk.address in np.frombuffer(memory_of(its.world)._entries(), np.int64)[1::2])
        free(chunk)

    monkeypatch.setattr(Chunk, "__del__", watch)
    for n_more in (300, 100, 400):
        for index in range(n_more):  # several chunks of each size
            its.world.CreateDynamicBody(position=(index, 9), fixtures=its.definition)
        n_before = len(freed)
        copy = EnvCopy(env, copy)
        its = copy.env
        assert len(freed) > n_before
        assert _free_blocks(its.world) == _free_blocks(env.world)
    assert not any(freed)


@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_knows_what_a_walk_through_its_world_would_find(name: str) -> None:
    env = MAKERS[name][0]()
    env.reset(seed=5)
    env.action_space.seed(0)
    copy = None
    for _ in range(4):
        play(env, [env.action_space.sample() for _ in range(9)])
        copy = EnvCopy(env, copy)
        its = memory_of(copy.env.unwrapped.world)  # type: ignore[attr-defined]
        known, walked = its.structure, its._walk()
        assert known[2:] == walked[2:] and known.bodies
        np.testing.assert_array_equal(known.places, walked.places)
        np.testing.assert_array_equal(known.values, walked.values)


def test_what_became_of_an_earlier_copy_leaves_no_trace_in_the_next() -> None:
    class Wreck(Box2D.b2Body):  # type: ignore[misc, name-defined]
        pass

    env = Machine()
    env.reset(seed=0)
    play(env, [1, 2, 1, 0])
    copy = EnvCopy(env)
    for _ in range(3):
        its: Any = copy.env
        for body in its.bodies[:2]:
            its.world.DestroyBody(body)
        its.bodies[2].mark = "its own"
        its.bodies = [*its.bodies[::-1], its.world.CreateDynamicBody(position=(1, 9), fixtures=its.definition)]
        its.bodies[0].this = its.bodies[-1].this
        its.wheel.__class__ = Wreck
        copy = EnvCopy(env, copy)
        its = copy.env
        assert [body.position for body in its.bodies] == [body.position for body in env.bodies]
        assert {int(body.this) for body in its.world.bodies} >= {int(body.this) for body in its.bodies}
        assert len({int(body.this) for body in its.bodies}) == len(env.bodies) > 2
        assert type(its.wheel) is type(env.wheel) is Box2D.b2Body
        assert [vars(body).keys() for body in its.bodies] == [vars(body).keys() for body in env.bodies]
        truth = play(env, [1, 2, 0])
        assert play(its, [1, 2, 0]) == truth
    env.wheel.__class__ = Wreck
    assert type(EnvCopy(env, copy).env.wheel) is Wreck  # type: ignore[attr-defined]


def test_a_copy_refers_to_nothing_of_the_env() -> None:
    env = Machine()
    env.reset(seed=0)
    play(env, [1, 2, 1])
    its = EnvCopy(env).env
    assert isinstance(its, Machine)
    assert its.world.contactListener.env is its and env.world.contactListener.env is env
    assert its.bodies[0].load == env.bodies[0].load and its.bodies[0] is not env.bodies[0]
    assert its.motor.bodyB == its.wheel != env.wheel
    assert its.tyre.body == its.wheel
    assert int(its.wheel.world.this) == int(its.world.this) != int(env.world.this)
    its.wheel.position = (5, 5)
    its.definition.density = 3.0
    assert (its.where.x, env.where.x) == (5.0, env.wheel.position.x) and env.where.x != 5.0
    assert env.definition.density == 1.0 and its.definition.shape.this != env.definition.shape.this


def test_an_env_may_lead_to_a_body_before_its_world() -> None:
    class Early(Noisy):
        def __init__(self) -> None:
            super().__init__(Early.fall)  # type: ignore[arg-type]
            self.ball: Any = None
            self.where: Any = None
            self.world = Box2D.b2World(gravity=(0, -1))
            self.ball = self.world.CreateDynamicBody(fixtures=Box2D.b2FixtureDef(shape=Box2D.b2CircleShape(radius=1)))
            self.where = self.ball.position

        def fall(self) -> float:
            self.world.Step(0.1, 5, 5)
            return float(self.ball.position.y + self.where.y)

    env = Early()
    env.reset(seed=0)
    its = EnvCopy(env).env
    assert play(its, [0, 1, 2]) == play(env, [0, 1, 2])
    assert isinstance(its, Early)
    assert int(its.ball.world.this) == int(its.world.this) != int(env.world.this)


def test_copies_go_when_nobody_has_them() -> None:
    env = Machine()
    env.reset(seed=0)
    copies: list[Any] = [EnvCopy(env).env for _ in range(5)]
    worlds = weakref.WeakSet([one.world for one in copies])
    assert len(worlds) == 5
    copies.clear()
    gc.collect()
    assert len(worlds) == 0


def test_a_copy_that_cannot_be_finished_leaves_no_trace() -> None:
    env, twin = Machine(), Machine()
    for one in (env, twin):
        one.reset(seed=0)
        play(one, [1, 2])
        one.later = (i for i in range(3))  # type: ignore[attr-defined]
    for _ in range(20):
        with contextlib.suppress(CannotCopyError):
            EnvCopy(env)
            raise AssertionError("it was copied")
    gc.collect()
    del env.later, twin.later  # type: ignore[attr-defined]
    assert play(env, [1, 0, 2] * 5) == play(twin, [1, 0, 2] * 5)


@pytest.mark.parametrize("again", [False, True], ids=["new", "spare"])
def test_a_copy_that_is_broken_off_harms_nobody(again: bool) -> None:
    env, twin = Machine(), Machine()
    for one in (env, twin):
        one.reset(seed=0)
        play(one, [1, 2])
    n_calls = finished = 0
    while not finished:
        copy = EnvCopy(env) if again else None
        if copy is not None:
            play(copy.env, [1, 2, 0] * 5)
        with interrupted(n_calls), contextlib.suppress(KeyboardInterrupt):
            EnvCopy(env, copy)
            finished = True
        n_calls += 1
    copy = None
    gc.collect()
    assert n_calls > 10
    assert play(env, [1, 0, 2] * 5) == play(twin, [1, 0, 2] * 5)


def test_what_only_looks_like_a_pointer_stays() -> None:
    """Small fields beside bytes that nobody writes, in which an old pointer may have been left."""
    env = Machine()
    world = Box2D.b2World(doSleep=False)
    edges = [Box2D.b2EdgeShape(vertices=[(x, 0), (x + 1, 0)]) for x in range(20)]
    body = world.CreateStaticBody(shapes=edges)
    env.world, env.ground = world, body
    places = [int(world.this) + BODIES + 32, *(int(one.shape.this) + 48 for one in body.fixtures)]
    stale = (int(body.this) + 2**15) & ~0xFFFF  # within a chunk, or near one
    for place in places:
        word = (place - MEMORY_START) >> 3
        memory()[word] = (memory()[word] & 0xFFFF) | (stale & ~0xFFFF)
    before = [memory()[(place - MEMORY_START) >> 3] for place in places]
    moved = WorldCopy(world)
    its = [moved.moves.address(place) for place in places]
    assert [memory()[(place - MEMORY_START) >> 3] for place in its if place] == before


def test_an_earlier_copy_is_written_anew() -> None:
    env = Machine()
    env.reset(seed=0)
    copy = EnvCopy(env)
    before = set()
    for step in range(10):
        env.step(1)
        if step == 5:
            env.world.more = [1]
        copy = EnvCopy(env, copy)
        its: Any = copy.env
        assert hasattr(its.world, "more") is (step >= 5)
        assert its.definition.shape.vertices == env.definition.shape.vertices
        before.add((int(its.definition.shape.this), int(its.world.this)))
        its.world.alone = True
        play(its, [1, 2, 0])
    assert len(before) == 1


def _gone(env: Machine) -> Any:
    """A body that is no more."""
    body = env.world.CreateDynamicBody()
    env.world.DestroyBody(body)
    return body


@pytest.mark.parametrize(
    "add",
    [
        lambda env: Box2D.b2BodyDef(),
        lambda env: env.wheel.transform,
        lambda env: type("World", (Box2D.b2World,), {})(),
        lambda env: Box2D.b2World().CreateStaticBody(),
        lambda env: env.wheel.world,
        lambda env: setattr(env.wheel, "userData", [env]),
        lambda env: type("Screen", (Box2D.b2Draw,), {})(),
        _gone,
        lambda env: type("Slotted", (Box2D.b2ContactListener,), {"__slots__": ("n",)})(),
    ],
    ids=[
        "definition of a body",
        "transform",
        "subclass of world",
        "unknown world",
        "second world",
        "userData",
        "screen",
        "gone",
        "slots",
    ],
)
def test_what_is_not_known_is_not_copied(add: Callable[[Machine], Any]) -> None:
    env = Machine()
    env.reset(seed=0)
    env.more = add(env)  # type: ignore[attr-defined]
    with pytest.raises(UnknownMemoryError, match=r"cannot be copied|not known|subclass|userData|slots"):
        EnvCopy(env)


@pytest.mark.parametrize("name", ["LunarLander-v3", "BipedalWalker-v3"])
def test_siblings_of_a_world_live_in_copies(name: str) -> None:
    env = make_branchable(gym.make(name))
    env.reset(seed=0)
    actions = np.array([env.action_space.sample() for _ in range(2)])
    env.get_wrapper_attr("step_siblings")(actions, np.ones(2, bool), True)
    assert [type(one) for one in env.get_wrapper_attr("siblings_beside").values()] == [EnvCopy] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BODY_POINTERS", (0x58, 0x60, 0x70, 0x78)),
        ("FIXTURE_POINTERS", (0x08, 0x20)),
        ("FIXTURE_PROXIES", 0x20),
        ("PROXY_POINTERS", (0x08,)),
        ("LINK_POINTERS", (0x08,)),
        ("GEAR_POINTERS", (0x90,)),
        ("WORLD_POINTERS", (BODIES + 24,)),
        ("FREE_BLOCKS", 8),
    ],
)
def test_a_world_that_is_laid_out_otherwise_is_not_copied(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = Machine()
    env.reset(seed=0)
    play(env, [1, 2, 1])
    EnvCopy(env)
    monkeypatch.setattr(at, name, value)
    with pytest.raises(UnknownMemoryError, match=r"leads out of it|not where it is expected"):
        EnvCopy(env)


def test_a_block_with_something_unknown_in_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Machine()
    env.reset(seed=0)
    true_save = WorldMemory.save

    def save(self: WorldMemory) -> Any:
        image = true_save(self)
        return image._replace(structure=image.structure._replace(joints=image.structure.joints[:-1]))

    monkeypatch.setattr(WorldMemory, "save", save)
    with pytest.raises(UnknownMemoryError, match="leads out of it"):
        EnvCopy(env)
