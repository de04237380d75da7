"""Box2D's objects: which of them have state of their own, and the cells that save it."""

import ctypes
import functools
import weakref
from typing import Any

from sb3_hybrid_grpo.branching.box2d_layout import UnknownMemoryError, c_library, refuse_chain
from sb3_hybrid_grpo.branching.box2d_memory import Image, WorldMemory
from sb3_hybrid_grpo.branching.cells import OpaqueCell
from sb3_hybrid_grpo.branching.layout import ATOMS, StructureChanged, identical
from sb3_hybrid_grpo.branching.protocol import Cell

IN_WORLD = frozenset({"b2Body", "b2Fixture", "b2Joint", "b2Contact"})
CALLBACKS = frozenset(
    {"b2ContactListener", "b2ContactFilter", "b2DestructionListener", "b2QueryCallback", "b2RayCastCallback", "b2Draw"}
)
PLAIN = frozenset(
    {"b2Vec2", "b2Vec3", "b2Mat22", "b2Mat33", "b2Rot", "b2Transform", "b2Sweep", "b2AABB", "b2Color", "b2MassData"}
    | {"b2Filter", "b2CircleShape", "b2EdgeShape", "b2PolygonShape", "b2BodyDef", "b2FixtureDef", "b2JointDef"}
)


@functools.lru_cache(maxsize=1024)
def box2d_names(kind: Any) -> frozenset[str]:
    """
    :param kind: The type of an object
    :return: The names of those of its bases, itself included, that are Box2D's; none for other objects
    """
    return frozenset(base.__name__ for base in kind.__mro__ if base.__module__ == "Box2D.Box2D")


def box2d_cell(obj: Any) -> Cell | None:
    """
    Find the cell of one of Box2D's objects. Its Python attributes are not in it.

    :param obj: The object
    :return: Its cell; None if it has no state, or one that is in a world's
    :raises TypeError: if its state cannot be saved
    """
    kind: Any = type(obj)
    names = box2d_names(kind)
    if "b2World" in names:
        return WorldCell(obj) if obj.this.own() else None  # else a second object for a world, as body.world gives one
    if names & IN_WORLD or names & CALLBACKS:
        return None
    if names & PLAIN:
        return BlockCell(obj) if obj.this.own() else None  # else it is a part of a world or a definition
    raise TypeError("an object of Box2D whose memory is not known")


class WorldCell(OpaqueCell):
    """
    A ``b2World``.

    :param world: The world
    :raises UnknownMemoryError: if its memory is not laid out as expected
    """

    def __init__(self, world: Any) -> None:
        self.world = world  # keeps the memory alive
        self.memory = memory_of(world)
        self.held = self.memory.save().user_data
        """The userData of its bodies, fixtures and joints, which nothing else may lead to."""

    def save(self, previous: Any) -> Image:
        image = self.memory.save()
        if not identical(image.user_data, self.held):
            if not ATOMS.issuperset(map(type, image.user_data)):
                raise StructureChanged
            self.held = image.user_data
        return image

    def resave(self, shared: Any, previous: Any) -> Image:
        return self.memory.save()

    def restore(self, contents: Image) -> None:
        self.memory.restore(contents)


def memory_of(world: Any, is_new: bool = False) -> WorldMemory:
    """
    :param world: A world
    :param is_new: Whether nothing has been made in it yet
    :return: Its memory, always the same one
    :raises UnknownMemoryError: if it is not laid out as expected
    """
    if world not in _MEMORIES:
        _MEMORIES[world] = WorldMemory(world, is_new)
    return _MEMORIES[world]


class BlockCell(OpaqueCell):
    """
    A vector, shape or definition with memory of its own, and the shape of a fixture's definition.

    :param obj: The object
    :raises UnknownMemoryError: if it refers to something that is not in it
    """

    def __init__(self, obj: Any) -> None:
        kind: Any = type(obj)
        self.obj, self.is_fixture = obj, "b2FixtureDef" in box2d_names(kind)
        self.size = c_library().malloc_usable_size
        self.save(None)

    def save(self, previous: Any) -> list[tuple[int, bytes]]:
        if getattr(self.obj, "userData", None) is not None:
            raise UnknownMemoryError("it is a definition with userData. Set the userData of what is made of it instead")
        addresses = [int(self.obj.this)]
        if self.is_fixture and self.obj.shape is not None:
            addresses.append(int(self.obj.shape.this))
            refuse_chain(addresses[-1])
        return [(address, ctypes.string_at(address, self.size(address))) for address in addresses]

    def restore(self, contents: list[tuple[int, bytes]]) -> None:
        for address, image in contents:
            ctypes.memmove(address, image, len(image))


_MEMORIES: "weakref.WeakKeyDictionary[Any, WorldMemory]" = weakref.WeakKeyDictionary()
