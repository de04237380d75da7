"""What of a chunk was never taken is left out of snapshots, and is noticed when it is taken."""

import ctypes
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_hybrid_grpo.branching.box2d_chunks import SPARE, Chunk
from sb3_hybrid_grpo.branching.box2d_layout import CHUNK_SIZE
from sb3_hybrid_grpo.branching.box2d_memory import WorldMemory

Box2D = pytest.importorskip("Box2D")


def _world(n_bodies: int) -> tuple[Any, list[Any]]:
    world = Box2D.b2World()
    return world, [_body(world, index) for index in range(n_bodies)]


def _body(world: Any, index: int) -> Any:
    return world.CreateDynamicBody(
        position=(3 * index, index), fixtures=Box2D.b2FixtureDef(shape=Box2D.b2CircleShape(radius=1))
    )


def _chunk_of(memory: WorldMemory, body: Any) -> Chunk:
    return next(one for one in memory.chunks.values() if one.address <= int(body.this) < one.address + CHUNK_SIZE)


def test_little_of_a_small_world_is_saved() -> None:
    world, bodies = _world(2)
    memory = WorldMemory(world)
    sizes = [len(contents) for _, contents in memory.save().chunks]
    assert sum(sizes) < CHUNK_SIZE * len(sizes) / 5
    chunk = _chunk_of(memory, bodies[0])
    assert chunk.used == (2 + SPARE) * chunk.block_size


@settings(max_examples=60, deadline=None)
@given(st.integers(SPARE, 30), st.randoms(use_true_random=False), st.integers(0, 30))
def test_what_was_taken_is_seen_in_whatever_order_it_was_given_back(n_more: int, random: Any, n_kept: int) -> None:
    world, bodies = _world(3)
    memory = WorldMemory(world)
    memory.save()
    more = [_body(world, index) for index in range(3, 4 + n_more)]
    random.shuffle(more)
    while len(more) > n_kept:
        world.DestroyBody(more.pop())
    chunk = _chunk_of(memory, bodies[0])
    assert chunk.has_grown()
    memory.save()
    assert not chunk.has_grown()
    assert all(int(body.this) + chunk.block_size <= chunk.address + chunk.used for body in more)


def test_a_world_comes_back_that_was_smaller() -> None:
    world, _ = _world(3)
    memory = WorldMemory(world)
    small = memory.save()
    before = [(body.position.x, body.position.y) for body in world.bodies]
    for index in range(3, 40):
        _body(world, index)
    world.Step(0.1, 5, 5)
    large = memory.save()
    after = [(body.position.x, body.position.y) for body in world.bodies]
    for image, truth in ((small, before), (large, after), (small, before)):
        memory.restore(image)
        assert [(body.position.x, body.position.y) for body in world.bodies] == truth
    made = [int(_body(world, 3 + index).this) for index in range(37)]
    memory.restore(small)
    assert [int(_body(world, 3 + index).this) for index in range(37)] == made


def test_the_memory_beyond_is_as_it_was_made() -> None:
    world, bodies = _world(3)
    memory = WorldMemory(world)
    chunk = _chunk_of(memory, bodies[0])
    start = chunk.address + chunk.used
    links = [ctypes.c_uint64.from_address(start + index * chunk.block_size).value for index in range(5)]
    assert links == [start + (index + 1) * chunk.block_size for index in range(5)]
    assert chunk.new[chunk.used :][:8] == links[0].to_bytes(8, "little")


def test_fixtures_without_a_place_in_the_tree_are_seen() -> None:
    """Nothing is written at the beginning of their proxies' blocks before their bodies become active."""
    world, bodies = _world(8)
    memory = WorldMemory(world)
    before = memory.save()
    for index in range(22):
        ball = Box2D.b2FixtureDef(shape=Box2D.b2PolygonShape(box=(1, 1)))
        bodies.append(world.CreateDynamicBody(position=(0, index), fixtures=ball, active=False))
    grown = [chunk.block_size for chunk in memory.chunks.values() if chunk.has_grown()]
    assert 32 in grown
    for body in bodies:
        body.active = True
    world.Step(0.1, 5, 5)
    memory.restore(before)
    for _ in range(3):
        world.Step(0.1, 5, 5)
    assert [int(_body(world, index).this) > 0 for index in range(30)] == [True] * 30
    world.Step(0.1, 5, 5)
