"""
Copies of what an env has of Box2D's, for copies of the env.

A copy of a world is an empty world that the image of the first one is written into. Then every pointer in it, to be found
from body to body, joint to joint and contact to contact, is made to point to the same thing in the new world. What Python
knows of a world, its bodies and joints, are pointers too, and get copies that point to the new things.

A chunk is divided into blocks of one size. A block has a body, fixture, shape, proxy, joint or contact in it, or it is free
and starts with the address of the next free one. Where that is not so of every block, or where a pointer leads out of the
world, nothing is copied.
"""

import bisect
import ctypes
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d import CALLBACKS, IN_WORLD, PLAIN, box2d_names, memory_of
from sb3_hybrid_grpo.branching.box2d_layout import MEMORY_START, UnknownMemoryError, c_library, read_pointer, words
from sb3_hybrid_grpo.branching.box2d_memory import Chunk, Image
from sb3_hybrid_grpo.branching.classes import slots_of

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
        old, new, sizes = np.array(self.ranges).T
        self.starts, self.ends, self.distances = old, old + sizes, new - old

    def of(self, addresses: np.ndarray) -> np.ndarray:
        """
        :param addresses: Addresses in the old world, or of what has not been moved
        :return: Where those things are
        """
        index = np.maximum(np.searchsorted(self.starts, addresses, "right"), 1) - 1
        inside = (addresses >= self.starts[index]) & (addresses < self.ends[index])
        moved: np.ndarray = np.where(inside, addresses + self.distances[index], addresses)
        return moved

    def address(self, address: int) -> int | None:
        """
        :param address: Where something was
        :return: Where it is; None if that has not been moved
        """
        old, new, size = self.ranges[bisect.bisect_right(self.ranges, (address + 1,)) - 1]
        return address - old + new if old <= address < old + size else None


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
        places = _pointers(image, old.address)
        values = _read(places)
        moved = self.moves.of(values)
        if ((moved == values) & (values != 0)).any():
            raise UnknownMemoryError("one of the world's pointers leads out of it")
        self.memory.restore(self._moved(image, its))
        nodes = self.memory.pointers[at.NODES].value + at.NODE_POINTER + np.arange(0, len(image.nodes), at.NODE_SIZE)
        _write(nodes, self.moves.of(_read(nodes)))
        _write(self.moves.of(places), moved)
        self.memory.forget()
        self._things = {int(one.this): one for one in (*self.world.bodies, *self.world.joints)}

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
        if moved not in self._things:  # a vector that lies in a body, or a fixture
            body = self._things.get(max((one for one in self._things if one < moved), default=0))
            self._add(getattr(body, name) for name in _VECTORS_OF_BODY if hasattr(body, name))
        if moved not in self._things:
            self._add(fixture for body in self.world.bodies for fixture in body.fixtures)
        return self._things.get(moved)

    def forget_things(self) -> None:
        """When the env is copied, nobody asks any more."""
        self._things = {}

    def _add(self, things: Iterable[Any]) -> None:
        self._things.update({int(one.this): one for one in things})


def _at(objects: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    places: np.ndarray = (objects[:, None] + np.array(offsets)).reshape(-1)
    return places


def _read(addresses: np.ndarray) -> np.ndarray:
    found: np.ndarray = words()[(addresses - MEMORY_START) >> 3].view(np.int64)
    return found


def _write(addresses: np.ndarray, values: np.ndarray) -> None:
    words()[(addresses - MEMORY_START) >> 3] = values.view(np.uint64)


def _list_from(place: int, next_place: int) -> list[int]:
    """Follow a linked list from a pointer to its first member."""
    found = []
    member = read_pointer(place)
    while member:
        found.append(member)
        member = read_pointer(member + next_place)
    return found


def _pointers(image: Image, world: int) -> np.ndarray:
    """Where the pointers are that lead to a world and to things in it, but for those in the nodes of the tree."""
    lists = (*image.structure[-3:], _list_from(world + at.CONTACTS, at.CONTACT_NEXT))
    bodies, fixtures, joints, contacts = (np.array(one, np.int64) for one in lists)
    shapes, proxies = _read(fixtures + at.FIXTURE_SHAPE), _read(fixtures + at.FIXTURE_PROXIES)
    return np.concatenate(
        [
            world + np.array(at.WORLD_POINTERS),
            world + at.FREE_BLOCKS + 8 * np.arange(at.N_BLOCK_SIZES),
            _free_blocks(image, np.concatenate([bodies, fixtures, shapes, proxies, joints, contacts])),
            _at(bodies, at.BODY_POINTERS),
            _at(fixtures, at.FIXTURE_POINTERS),
            _at(proxies, at.PROXY_POINTERS),
            _at(np.concatenate([joints, contacts]), at.LINK_POINTERS),
            _at(joints[_read(joints + at.JOINT_TYPE) & 0xFFFFFFFF == at.GEAR], at.GEAR_POINTERS),
        ]
    )


def _free_blocks(image: Image, used: np.ndarray) -> np.ndarray:
    """
    The blocks of a world's chunks that nothing is in.

    :raises UnknownMemoryError: if what is known to be in the world is not in blocks of its own
    """
    entries = np.frombuffer(image.entries, np.int64)
    chunks = sorted(zip(entries[1::2].tolist(), (entries[::2] & 0xFFFFFFFF).tolist(), strict=True))
    blocks = np.concatenate([np.arange(0), *(np.arange(a, a + at.CHUNK_SIZE - size + 1, size) for a, size in chunks)])
    is_free = np.ones(len(blocks) + 1, bool)
    is_free[np.searchsorted(blocks, used)] = False
    if not np.array_equal(blocks[~is_free[:-1]], np.sort(used)):
        raise UnknownMemoryError("what is in the world is not where it is expected to be")
    return blocks[is_free[:-1]]


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
    made = copier.remember(obj, object.__new__(type(obj)))
    if not _point(made, obj, copier):
        copier.pointers.append((made, obj))
    return _with_attributes(made, obj, copier)


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


def _is_on_stack(address: int) -> bool:
    """Whether something is, or was, in a function's frame of the main thread."""
    return _end_of_stack() - _LARGEST_STACK <= address < _end_of_stack()


@functools.cache
def _end_of_stack() -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return next((int(line.split("-")[1].split()[0], 16) for line in maps if line.rstrip().endswith("[stack]")), 0)
