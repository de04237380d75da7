"""
Copies of what an env has of Box2D's, for copies of the env.

A copy of a world is an empty world that the image of the first one is written into. Then every pointer in it, to be found
from body to body, joint to joint and contact to contact, is made to point to the same thing in the new world. What Python
knows of a world, its bodies and joints, are pointers too, and get copies that point to the new things.

A chunk is divided into blocks of one size. A block has a body, fixture, shape, proxy, joint or contact in it, or it is free
and starts with the address of the next free one. Where that is not so of every block, or where a pointer leads out of the
world, nothing is copied.
"""

import ctypes
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d import CALLBACKS, IN_WORLD, PLAIN, box2d_names, memory_of
from sb3_hybrid_grpo.branching.box2d_layout import UnknownMemoryError, c_library
from sb3_hybrid_grpo.branching.box2d_memory import Chunk, Image
from sb3_hybrid_grpo.branching.box2d_pointers import Moves, pointers, read, write
from sb3_hybrid_grpo.branching.classes import slots_of

# Without pointers: all that they are lies in themselves.
_FLAT = PLAIN - {"b2BodyDef", "b2JointDef", "b2FixtureDef"}
_LARGEST_STACK = 2**23
_LISTENERS = ("destructionListener", "contactListener", "contactFilter", "renderer")
_VECTORS_OF_BODY = ("position", "worldCenter", "localCenter", "linearVelocity")
_OF_DEFINITION = ("friction", "restitution", "density", "isSensor", "categoryBits", "maskBits", "groupIndex")


class WorldCopy:
    """
    A copy of a ``b2World``.

    :param world: The world
    :param spare: An earlier copy that is not needed any more; its world is written anew
    :raises UnknownMemoryError: if it cannot be copied
    """

    def __init__(self, world: Any, spare: "WorldCopy | None" = None) -> None:
        if type(world).__module__ != "Box2D.Box2D" or not world.this.own():
            raise UnknownMemoryError("the world is of a subclass of b2World, or another object that stands for one")
        old = memory_of(world)
        image = old.save()
        if image.user_data:  # nobody can see that what a world holds leads back to it
            raise UnknownMemoryError("the world holds userData")
        self.world: Any = type(world)() if spare is None else spare.world
        self.memory = memory_of(self.world, is_new=spare is None)
        chunks = [chunk for chunk, _ in image.chunks]
        its = self.memory.listed_chunks()[: len(chunks)]
        its += [Chunk(c_library().malloc(at.CHUNK_SIZE), is_listed=False) for _ in chunks[len(its) :]]
        pairs = [(a.address, b.address, at.CHUNK_SIZE) for a, b in zip(chunks, its, strict=True)]
        self.moves = Moves([(old.address, self.memory.address, at.SIZE), *pairs])
        places = pointers(image, old.address)
        values = read(places)
        moved = self.moves.of(values)
        if ((moved == values) & (values != 0)).any():
            raise UnknownMemoryError("one of the world's pointers leads out of it")
        self.memory.restore(self._moved(image, its))
        nodes = self.memory.pointers[at.NODES].value + at.NODE_POINTER + np.arange(0, len(image.nodes), at.NODE_SIZE)
        write(nodes, self.moves.of(read(nodes)))
        write(self.moves.of(places), moved)
        self.memory.structure = self.moves.structure(image.structure)
        self._things: dict[int, Any] = {}
        self.bodies = dict(zip(image.structure.bodies, self.memory.structure.bodies, strict=True))
        """Where each body was, and where it is."""

    def _moved(self, image: Image, its: list[Chunk]) -> Image:
        """The image with this world's chunks, and without bodies and joints, should it end before all is done."""
        entries = np.frombuffer(image.entries, np.int64).copy()
        entries[1::2] = [chunk.address for chunk in its]
        tail = np.frombuffer(image.tail, np.int64).copy()
        tail[[(place - at.FLAGS) >> 3 for place in at.WORLD_POINTERS]] = 0
        chunks = [(chunk, contents) for chunk, (_, contents) in zip(its, image.chunks, strict=True)]
        return image._replace(entries=entries.tobytes(), tail=tail.tobytes(), chunks=chunks)

    def thing(self, address: int) -> Any:
        """
        Find in this world what is in the old one.

        :param address: Where the thing is in the old world
        :return: The same in this world: a body, a joint, a fixture or a vector; None if it is not in that world
        """
        moved = self.moves.address(address)
        if moved is None:
            return None
        if not self._things:
            self._add((*self.world.bodies, *self.world.joints))
        if moved not in self._things:  # a vector that lies in a body, or a fixture
            body = self._things.get(max((one for one in self._things if one < moved), default=0))
            self._add(getattr(body, name) for name in _VECTORS_OF_BODY if hasattr(body, name))
        if moved not in self._things:
            self._add(fixture for body in self.world.bodies for fixture in body.fixtures)
        return self._things.get(moved)

    def forget_things(self) -> None:
        """When the env is copied, nobody asks any more."""
        self._things, self.bodies = {}, {}

    def _add(self, things: Iterable[Any]) -> None:
        self._things.update({int(one.this): one for one in things})


def copy_box2d(copier: Any, obj: Any) -> Any:
    """
    Copy one of Box2D's objects, with its Python attributes.

    :param copier: The :class:`EnvCopy` that it is for
    :param obj: The object
    :return: The copy
    :raises UnknownMemoryError: if it cannot be copied
    """
    kind: Any = type(obj)
    names = box2d_names(kind)
    if slots_of(kind):
        raise UnknownMemoryError(f"a {kind.__name__} has slots")
    if "b2World" in names:
        return _copy_world(obj, copier)
    if names & IN_WORLD or ("b2Vec2" in names and not obj.this.own()):
        return _copy_pointer(obj, copier)
    if names & CALLBACKS and "b2Draw" not in names:  # that has fields of its own
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
    return moved.world


def _copy_definition(obj: Any, copier: Any) -> Any:
    """A definition of fixtures. Box2D never frees its shape, so that an earlier copy's is used again."""
    made = copier.spare[id(obj)][1] if id(obj) in copier.spare else type(obj)()
    copier.dear[id(obj)] = (obj, copier.remember(obj, made))
    if made.userData is not None:
        made.ClearUserData()
    for name in _OF_DEFINITION:
        setattr(made, name, getattr(obj, name))
    if obj.shape is None or type(made.shape) is not type(obj.shape):
        made.shape = None if obj.shape is None else _copy_flat(obj.shape)
    else:
        _write_flat(made.shape, obj.shape)
    return made


def _copy_pointer(obj: Any, copier: Any) -> Any:
    """A body, a fixture, a joint, or a vector in one of them."""
    kind: Any = type(obj)
    made = copier.spare[id(obj)][1] if id(obj) in copier.spare else None
    if type(made) is not kind:
        made = object.__new__(kind)
    copier.dear[id(obj)] = (obj, made)  # there may be hundreds, and every new object adds to what garbage collection looks at
    copier.remember(obj, made)
    attributes = made.__dict__
    this = attributes.get("this")
    attributes.clear()
    if this is not None and "b2Body" in box2d_names(kind) and _is_there(int(this), int(obj.this), copier.worlds):
        attributes["this"] = this  # of an earlier copy
    elif not _point(made, obj, copier):
        copier.pointers.append((made, obj))
    return _with_attributes(made, obj, copier)


def _is_there(address: int, old_address: int, worlds: list[WorldCopy]) -> bool:
    """Whether a body's copy is at this address."""
    for world in worlds:
        if world.bodies.get(old_address) == address:
            return True
    return False


def point_all(copier: Any) -> None:
    """
    Let those pointers point to the copies of what they are to point to that an env led to before it led to their world.

    :param copier: The :class:`EnvCopy`
    :raises UnknownMemoryError: if there is no such world
    """
    for made, obj in copier.pointers:
        if not _point(made, obj, copier):
            raise UnknownMemoryError(f"a {type(obj).__name__} whose world is not known")


def _point(made: Any, obj: Any, copier: Any) -> bool:
    address = int(obj.this)
    thing = next((found for one in copier.worlds if (found := one.thing(address)) is not None), None)
    if thing is None and _is_on_stack(address):
        thing = obj  # the argument of a callback that has returned: whoever looks there sees what he sees
    if thing is None or not isinstance(obj, type(thing)):  # gone, and something else is in its place
        return False
    made.__dict__["this"] = thing.this
    return True


def _with_attributes(made: Any, obj: Any, copier: Any) -> Any:
    attributes = made.__dict__
    for name, value in obj.__dict__.items():
        if name != "this":
            attributes[name] = copier.copy(value)
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


def _is_on_stack(address: int) -> bool:
    """Whether something is, or was, in a function's frame of the main thread."""
    return _end_of_stack() - _LARGEST_STACK <= address < _end_of_stack()


@functools.cache
def _end_of_stack() -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return next((int(line.split("-")[1].split()[0], 16) for line in maps if line.rstrip().endswith("[stack]")), 0)
