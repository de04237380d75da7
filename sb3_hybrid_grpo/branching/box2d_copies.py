"""
Copies of what an env has of Box2D's, for copies of the env.

A copy of a world is an empty world that the image of the first one is written into, moved to where the new chunks lie: every
word that is an address within the old world or its chunks becomes the one of the same thing in the new. What Python knows of
a world, its bodies and joints, are pointers to such things, and get copies that point to the new ones.
"""

import bisect
import ctypes
import functools
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d import CALLBACKS, IN_WORLD, PLAIN, box2d_names, memory_of
from sb3_hybrid_grpo.branching.box2d_chunks import Chunk
from sb3_hybrid_grpo.branching.box2d_layout import MEMORY_START, UnknownMemoryError, c_library, memory
from sb3_hybrid_grpo.branching.box2d_memory import Image, Structure, WorldMemory

# Without pointers: all that they are lies in themselves.
_FLAT = PLAIN - {"b2BodyDef", "b2JointDef", "b2FixtureDef"}
_LARGEST_STACK = 2**23
_LISTENERS = ("destructionListener", "contactListener", "contactFilter", "renderer")
_VECTORS_OF_BODY = ("position", "worldCenter", "localCenter", "linearVelocity")
_OF_DEFINITION = ("friction", "restitution", "density", "isSensor", "categoryBits", "maskBits", "groupIndex")


class Moves:
    """
    Where things have been moved to.

    :param ranges: Old address, new address and size, of each block of memory
    """

    def __init__(self, ranges: list[tuple[int, int, int]]) -> None:
        self.ranges = sorted(ranges)
        old, new, sizes = np.array(self.ranges, np.uint64).T
        self.starts, self.ends, self.distances = old, old + sizes, new - old  # may wrap around, as their sums do again

    def of(self, words: np.ndarray) -> np.ndarray:
        """
        :param words: Words of memory
        :return: The same, but for addresses of what has been moved
        """
        index = np.maximum(np.searchsorted(self.starts, words, "right"), 1) - 1
        inside = (words >= self.starts[index]) & (words < self.ends[index])
        moved: np.ndarray = np.where(inside, words + self.distances[index], words)
        return moved

    def image(self, contents: bytes) -> bytes:
        """
        :param contents: A piece of memory
        :return: The same with all its addresses moved
        """
        return self.of(np.frombuffer(contents, np.uint64)).tobytes()

    def address(self, address: int) -> int | None:
        """
        :param address: Where something was
        :return: Where it is; None if that has not been moved
        """
        index = bisect.bisect_right(self.ranges, (address + 1,)) - 1
        old, new, size = self.ranges[index]
        return address - old + new if old <= address < old + size else None


class WorldCopy:
    """
    A copy of a ``b2World``.

    :param world: The world
    :param spare: An earlier copy that is not needed any more; its world is written anew
    :raises UnknownMemoryError: if it cannot be copied
    """

    def __init__(self, world: Any, spare: "WorldCopy | None" = None) -> None:
        memory_of_old = memory_of(world)
        image = memory_of_old.save()
        self.world: Any = type(world)() if spare is None else spare.world
        self.memory: WorldMemory = WorldMemory(self.world, is_new=True) if spare is None else spare.memory
        self.lets_go: bool = spare is not None and spare.lets_go
        """Whether the world gives up its userData at its end."""
        has = self.memory.listed_chunks()
        pairs = [(old, _chunk_like(old, has)) for old, _ in image.chunks]
        self.moves = Moves(
            [(memory_of_old.address, self.memory.address, at.SIZE)]
            + [(old.address, its.address, at.CHUNK_SIZE) for old, its in pairs]
        )
        places, values = image.structure.places, image.structure.values
        its_places = (self.moves.of((places.astype(np.uint64) << 3) + MEMORY_START).astype(np.int64) - MEMORY_START) >> 3
        self.memory.restore(
            Image(
                self.moves.image(image.head),
                self.moves.image(image.tail),
                self.moves.image(image.entries),
                [(its, self.moves.image(ctypes.string_at(old.address, at.CHUNK_SIZE))) for old, its in pairs],
                self.moves.image(image.nodes),
                image.moves,
                Structure(its_places, self.moves.of(values), []),
                [],
            )
        )
        held = np.isin(values, np.array(image.structure.user_data, np.uint64))
        self.user_data = list(zip(its_places[held].tolist(), values[held].tolist(), strict=True))
        """Where the world is to have userData, and the addresses of the old world's. It does not hold those, and has none."""
        for place, _ in self.user_data:
            memory()[place] = 0
        self._things = {int(one.this): one for one in (*self.world.bodies, *self.world.joints)}

    def pointer(self, address: int) -> Any:
        """
        Find what Python's pointer to a thing in the old world is to be in this one.

        :param address: Where the thing is in the old world
        :return: The pointer; None if it is not in that world
        """
        moved = self.moves.address(address)
        if moved is None:
            return None
        if moved not in self._things:  # a vector that lies in a body, or a fixture
            body = self._things.get(max((one for one in self._things if one < moved), default=0))
            self._add(getattr(body, name) for name in _VECTORS_OF_BODY if hasattr(body, name))
        if moved not in self._things:
            self._add(fixture for body in self.world.bodies for fixture in body.fixtures)
        return self._things[moved].this if moved in self._things else None

    def _add(self, things: Iterable[Any]) -> None:
        self._things.update({int(one.this): one for one in things})


def copy_box2d(obj: Any, copier: Any) -> Any:
    """
    Copy one of Box2D's objects, with its Python attributes.

    :param obj: The object
    :param copier: The :class:`EnvCopy` that it is for
    :return: The copy
    :raises UnknownMemoryError: if it cannot be copied
    """
    kind: Any = type(obj)
    names = box2d_names(kind)
    if "b2World" in names:
        return _copy_world(obj, copier)
    if names & IN_WORLD or ("b2Vec2" in names and not obj.this.own()):
        return _copy_pointer(obj, copier)
    if names & CALLBACKS:
        made = copier.remember(obj, object.__new__(kind))
        base: Any = next(base for base in kind.__mro__ if base.__module__ == "Box2D.Box2D")
        base.__init__(made)  # of the class itself, it may want arguments
        return _with_attributes(made, obj, copier)
    if names & _FLAT and obj.this.own():
        return _with_attributes(copier.remember(obj, _copy_flat(obj)), obj, copier)
    if "b2FixtureDef" in names and obj.this.own() and obj.userData is None:
        return _with_attributes(_copy_definition(obj, copier), obj, copier)
    raise UnknownMemoryError(f"a {kind.__name__} cannot be copied")


def _copy_world(world: Any, copier: Any) -> Any:
    if type(world).__name__ != "b2World":
        raise UnknownMemoryError("the world is of a subclass of b2World")
    spare = copier.spare_worlds[len(copier.worlds)] if len(copier.worlds) < len(copier.spare_worlds) else None
    moved = WorldCopy(world, spare)
    copier.worlds.append(moved)
    copier.remember(world, moved.world)
    for name in vars(moved.world).keys() - {"this"}:
        del moved.world.__dict__[name]
    _with_attributes(moved.world, world, copier)
    for name in _LISTENERS:
        listener = getattr(moved.world, name)
        if listener is not None:  # the image has the old world's
            setattr(moved.world, name, listener)
    if moved.user_data and not moved.lets_go:
        weakref.finalize(moved.world, moved.memory.let_go).atexit = False  # a world that ends does not let go by itself
        moved.lets_go = True
    for place, address in moved.user_data:
        its = copier.copy(ctypes.cast(address, ctypes.py_object).value)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(its))
        memory()[place] = id(its)
    return moved.world


def _copy_definition(obj: Any, copier: Any) -> Any:
    """A definition of fixtures. Box2D never frees its shape, so that an earlier copy's is used again."""
    made = copier.spare[id(obj)][1] if id(obj) in copier.spare else type(obj)()
    copier.dear[id(obj)] = (obj, copier.remember(obj, made))
    for name in _OF_DEFINITION:
        setattr(made, name, getattr(obj, name))
    if obj.shape is None or type(made.shape) is not type(obj.shape):
        made.shape = None if obj.shape is None else _copy_flat(obj.shape)
    else:
        _write_flat(made.shape, obj.shape)
    return made


def _copy_pointer(obj: Any, copier: Any) -> Any:
    """A body, a fixture, a joint, or a vector in one of them."""
    address = int(obj.this)
    pointer = next((found for one in copier.worlds if (found := one.pointer(address)) is not None), None)
    if pointer is None and _is_on_stack(address):
        pointer = obj.this  # the argument of a callback that has returned: whoever looks there sees what he sees
    if pointer is None:
        raise UnknownMemoryError(f"a {type(obj).__name__} whose world is not known")
    made = copier.remember(obj, object.__new__(type(obj)))
    made.__dict__["this"] = pointer
    return _with_attributes(made, obj, copier)


def _with_attributes(made: Any, obj: Any, copier: Any) -> Any:
    for name, value in vars(obj).items():
        if name != "this":
            made.__dict__[name] = copier.copy(value)
    return made


def _copy_flat(obj: Any) -> Any:
    """A vector or a shape: all of its memory."""
    made = type(obj)()
    _write_flat(made, obj)
    return made


def _write_flat(made: Any, obj: Any) -> None:
    kind: Any = type(obj)
    if not box2d_names(kind) & _FLAT:
        raise UnknownMemoryError(f"a {kind.__name__} has memory elsewhere")
    size = c_library().malloc_usable_size
    old, new = int(obj.this), int(made.this)
    ctypes.memmove(new, old, min(size(new), size(old)))  # each has room for it, and maybe for some bytes more


def _chunk_like(old: Chunk, has: list[Chunk]) -> Chunk:
    """One of the chunks that the copy has already, if there is one with blocks of that size, or a new one."""
    for chunk in has:
        if chunk.block_size == old.block_size:
            has.remove(chunk)
            return chunk
    chunk = Chunk(c_library().malloc(at.CHUNK_SIZE), old.block_size)
    chunk.is_listed = False  # until the world lists it
    return chunk


def _is_on_stack(address: int) -> bool:
    """Whether something is, or was, in a function's frame of the main thread."""
    return _end_of_stack() - _LARGEST_STACK <= address < _end_of_stack()


@functools.cache
def _end_of_stack() -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return next((int(line.split("-")[1].split()[0], 16) for line in maps if line.rstrip().endswith("[stack]")), 0)
