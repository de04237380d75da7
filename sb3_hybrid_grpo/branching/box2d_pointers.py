"""Where the pointers of a Box2D world are, and what becomes of them when the world is written to another place."""

import bisect
from collections.abc import Sequence

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d_layout import UnknownMemoryError, read_pointer
from sb3_hybrid_grpo.branching.box2d_memory import Image, Structure
from sb3_hybrid_grpo.branching.memory import MEMORY_START, words


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

    def structure(self, old: Structure) -> Structure:
        """
        :param old: What a walk through a world without userData found
        :return: What one through the world that was moved would find, which takes ten times as long
        """
        n_places, n_bodies, n_fixtures = len(old.places), len(old.bodies), len(old.fixtures)
        things = np.array([*old.bodies, *old.fixtures, *old.joints], np.int64)
        moved = self.of(np.concatenate([(old.places << 3) + MEMORY_START, things]))
        places = (moved[:n_places] - MEMORY_START) >> 3
        bodies_and_others = moved[n_places:].tolist()
        bodies, others = bodies_and_others[:n_bodies], bodies_and_others[n_bodies:]
        return Structure(places, words()[places], [], bodies, others[:n_fixtures], others[n_fixtures:])


def _at(objects: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    places: np.ndarray = (objects[:, None] + np.array(offsets)).reshape(-1)
    return places


def read(addresses: np.ndarray) -> np.ndarray:
    """
    :param addresses: Of words in memory
    :return: The words
    """
    found: np.ndarray = words()[(addresses - MEMORY_START) >> 3].view(np.int64)
    return found


def write(addresses: np.ndarray, values: np.ndarray) -> None:
    """
    :param addresses: Of words in memory
    :param values: What they are to be
    """
    words()[(addresses - MEMORY_START) >> 3] = values.view(np.uint64)


def _list_from(place: int, next_place: int) -> list[int]:
    """Follow a linked list from a pointer to its first member."""
    found = []
    member = read_pointer(place)
    while member:
        found.append(member)
        member = read_pointer(member + next_place)
    return found


def pointers(image: Image, world: int) -> np.ndarray:
    """
    Find the pointers that lead to a world and to things in it, but for those in the nodes of the tree.

    :param image: The world as it is now
    :param world: Where it is
    :return: Where the pointers are
    :raises UnknownMemoryError: if its memory is not laid out as expected
    """
    lists = (*image.structure[-3:], _list_from(world + at.CONTACTS, at.CONTACT_NEXT))
    bodies, fixtures, joints, contacts = (np.array(one, np.int64) for one in lists)
    shapes, proxies = read(fixtures + at.FIXTURE_SHAPE), read(fixtures + at.FIXTURE_PROXIES)
    return np.concatenate(
        [
            world + np.array(at.WORLD_POINTERS),
            world + at.FREE_BLOCKS + 8 * np.arange(at.N_BLOCK_SIZES),
            _free_blocks(image, np.concatenate([bodies, fixtures, shapes, proxies, joints, contacts])),
            _at(bodies, at.BODY_POINTERS),
            _at(fixtures, at.FIXTURE_POINTERS),
            _at(proxies, at.PROXY_POINTERS),
            _at(np.concatenate([joints, contacts]), at.LINK_POINTERS),
            _at(joints[read(joints + at.JOINT_TYPE) & 0xFFFFFFFF == at.GEAR], at.GEAR_POINTERS),
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
