"""Where the memory of a Box2D world is, compared with what Box2D's public interface says of it."""

import ctypes
import functools
import os
import sys
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.engines import EngineRefusal
from sb3_hybrid_grpo.branching.memory import MEMORY_START, memory

CHUNK_SIZE = 16 * 1024
N_BLOCK_SIZES = 14
NODE_SIZE = 40
# Offsets in a b2World of Box2D 2.3: allocator of blocks, stack (empty between steps), flags, tree, broad phase, lists.
CHUNKS, N_CHUNKS, CHUNK_SPACE, FREE_BLOCKS = 0, 8, 12, 16
STACK = 128
STACK_IN_USE = (STACK + 102400, STACK + 102400 + 16 + 512)
FLAGS = STACK + 102400 + 16 + 512 + 8
TREE = FLAGS + 8
NODES, NODE_CAPACITY = TREE + 8, TREE + 20
N_PROXIES = TREE + 40
MOVES, MOVE_CAPACITY = N_PROXIES + 8, N_PROXIES + 16
PAIRS, PAIR_CAPACITY = N_PROXIES + 24, N_PROXIES + 32
CONTACTS = N_PROXIES + 48
BODIES = CONTACTS + 40
JOINTS, N_BODIES, N_JOINTS, GRAVITY = BODIES + 8, BODIES + 16, BODIES + 20, BODIES + 24
SIZE = BODIES + 96
# Offsets in a b2Body, b2Fixture, b2Joint, b2Shape and b2Contact.
BODY_NEXT, BODY_FIXTURES, BODY_USER_DATA = 0x68, 0x70, 0xB0
FIXTURE_NEXT, FIXTURE_SHAPE, FIXTURE_USER_DATA = 0x08, 0x18, 0x40
JOINT_NEXT, JOINT_USER_DATA = 0x18, 0x78
SHAPE_TYPE, CHAIN = 0x08, 3
CONTACT_NEXT = 0x18
# Where all the other pointers are, but for those to userData. A joint and a contact have the same ones; a gear has four more.
BODY_POINTERS = (0x58, 0x60, BODY_NEXT, BODY_FIXTURES, 0x80, 0x88)
FIXTURE_POINTERS = (FIXTURE_NEXT, 0x10, FIXTURE_SHAPE, 0x28)
FIXTURE_PROXIES, PROXY_POINTERS = 0x28, (0x10,)
LINK_POINTERS = tuple(range(0x10, 0x70, 8))
JOINT_TYPE, GEAR, GEAR_POINTERS = 0x08, 6, (0x80, 0x88, 0x98, 0xA0)
NODE_POINTER = 0x10
WORLD_POINTERS = (CONTACTS, CONTACTS + 32, BODIES, JOINTS)

SLACK = 64  # what the C library may add to a block, and more


class UnknownMemoryError(EngineRefusal):
    """It is not known where all the memory of a world is. Forks need not know."""

    is_final = False


def check_layout(world: Any) -> None:
    """
    Compare what is read from a world's memory with what its public interface says; once, that of a world that has everything.

    :param world: The world
    :raises UnknownMemoryError: if something differs
    """
    _check_library()
    _check_world(world)


@functools.cache
def _check_library() -> None:
    if sys.platform != "linux" or sys.maxsize < 2**32 or sys.byteorder != "little" or not c_library():
        raise UnknownMemoryError(f"the memory of Box2D is known on 64-bit Linux with glibc only (this is {sys.platform})")
    import Box2D

    world = Box2D.b2World()
    wall = Box2D.b2FixtureDef(shape=Box2D.b2EdgeShape(vertices=[(-1, 0), (1, 0)]), userData=["wall"])
    ground = world.CreateStaticBody(fixtures=wall, userData=["ground"])
    box = Box2D.b2FixtureDef(shape=Box2D.b2PolygonShape(box=(1, 1)), density=1.0, userData=["box"])
    bodies = [world.CreateDynamicBody(position=(x, 0.9), fixtures=[box, box], userData=["body"]) for x in (0, 5)]
    world.CreateRevoluteJoint(bodyA=ground, bodyB=bodies[0], userData=["joint"])
    world.CreateDistanceJoint(bodyA=bodies[0], bodyB=bodies[1], userData=["joint"])
    world.Step(0.01, 1, 1)
    _check_world(world)


def _check_world(world: Any) -> None:
    a = int(world.this)
    _check_block("a world", a, SIZE, SIZE + SLACK)
    _same("the use of the stack", [read_int(a + place) for place in STACK_IN_USE], [0, 0])
    counts = {"bodyCount": N_BODIES, "jointCount": N_JOINTS, "contactCount": CONTACTS + 8, "proxyCount": N_PROXIES}
    for name, place in counts.items():
        _same(name, read_int(a + place), getattr(world, name))
    _same("gravity", np.frombuffer(ctypes.string_at(a + GRAVITY, 8), np.float32).tolist(), list(world.gravity))
    entries, n_chunks = read_pointer(a + CHUNKS), read_int(a + N_CHUNKS)
    _check_block("the list of chunks", entries, 16 * max(n_chunks, read_int(a + CHUNK_SPACE)))
    for n in range(n_chunks):
        _check_block("a chunk", read_pointer(entries + 16 * n + 8), CHUNK_SIZE, CHUNK_SIZE + SLACK)
    _check_block("the nodes", read_pointer(a + NODES), NODE_SIZE * read_int(a + NODE_CAPACITY))
    _check_block("the moves", read_pointer(a + MOVES), 4 * read_int(a + MOVE_CAPACITY))
    _compare_list("bodies", read_pointer(a + BODIES), world.bodies, BODY_NEXT)
    _compare_list("joints", read_pointer(a + JOINTS), world.joints, JOINT_NEXT)
    _compare_list("contacts", read_pointer(a + CONTACTS), world.contacts, CONTACT_NEXT)
    _compare_user_data(world.bodies, BODY_USER_DATA)
    _compare_user_data(world.joints, JOINT_USER_DATA)
    for body in world.bodies:
        _compare_list("fixtures", read_pointer(int(body.this) + BODY_FIXTURES), body.fixtures, FIXTURE_NEXT)
        _compare_user_data(body.fixtures, FIXTURE_USER_DATA)
        for fixture in body.fixtures:
            shape = read_pointer(int(fixture.this) + FIXTURE_SHAPE)
            _same("the shape of a fixture", shape, int(fixture.shape.this))
            _same("the type of a shape", read_int(shape + SHAPE_TYPE), fixture.shape.type)


def _check_block(what: str, address: int, smallest: int, largest: float = float("inf")) -> None:
    """Find a block of memory where it should be, from what glibc writes before it; the address may be none at all."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            header = int.from_bytes(os.pread(memory.fileno(), 8, address - 8), sys.byteorder)
    except (OSError, OverflowError):
        header = 0
    is_mapped = header & 2
    size = (header & ~7) - (16 if is_mapped else 8)
    if address % 16 or not 0 < smallest <= size <= largest:
        _same(what, f"one of {size} at {address:#x}", f"a block of {smallest} bytes")


def _compare_list(what: str, first: int, objects: list[Any], next_place: int) -> None:
    """Follow a linked list from object to object, as the public interface knows them: in this order or the other way round."""
    expected = [int(obj.this) for obj in objects]
    if expected and first != expected[0]:
        expected.reverse()
    found = [first, *(read_pointer(address + next_place) for address in expected)]
    _same(f"the list of {what}", found, [*expected, 0])


def _compare_user_data(objects: list[Any], place: int) -> None:
    found = [read_pointer(int(obj.this) + place) or id(None) for obj in objects]
    _same("userData", found, [id(obj.userData) for obj in objects])


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        import Box2D

        raise UnknownMemoryError(
            f"the memory of this Box2D ({Box2D.__version__}) is not laid out as in version 2.3.10, the one that is known: "
            f"{what} should be {expected}, and is read as {found}"
        )


def refuse_chain(shape: int) -> None:
    """
    Refuse a shape whose points lie outside of the memory that is saved.

    :param shape: Address of the shape
    :raises UnknownMemoryError: if it is such a shape
    """
    if read_int(shape + SHAPE_TYPE) == CHAIN:
        raise UnknownMemoryError("it has a b2ChainShape, whose points lie in memory of their own. Make it of b2EdgeShapes")


def read_int(address: int) -> int:
    """
    :param address: Where to read
    :return: A number of 32 bits
    """
    return (memory()[(address - MEMORY_START) >> 3] >> (8 * (address & 4))) & 0xFFFFFFFF


def read_pointer(address: int) -> int:
    """
    :param address: Where to read
    :return: An address
    """
    value: int = memory()[(address - MEMORY_START) >> 3]
    return value


@functools.cache
def c_library() -> Any:
    """
    :return: The C library that Box2D allocates with; None if it does not say how large a block is
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_usable_size"):
        return None
    library.malloc_usable_size.argtypes, library.malloc_usable_size.restype = [ctypes.c_void_p], ctypes.c_size_t
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    return library
