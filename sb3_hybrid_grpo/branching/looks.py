"""What many containers refer to, seen in a few calls into C."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sb3_hybrid_grpo.branching.memory import ITEMS, LENGTH, MEMORY_START, VERSION, addresses, places_of, words


class Seen(NamedTuple):
    """What there is of each container, told by words: where they are the same, so is what it refers to."""

    sizes: bytes
    """How many words there are of each; a word each."""
    words: bytes
    """The words, container after container."""

    def unlike(self, other: "Seen") -> list[int]:
        """
        :param other: What was seen at another time
        :return: The containers that are not the same
        """
        if self == other:
            return []
        found, start, other_start = [], 0, 0
        for index, (size, other_size) in enumerate(zip(self.n_bytes(), other.n_bytes())):  # noqa: B905  hot
            end, other_end = start + size, other_start + other_size
            if self.words[start:end] != other.words[other_start:other_end]:
                found.append(index)
            start, other_start = end, other_end
        return found

    def n_bytes(self) -> list[int]:
        """
        :return: How many bytes the words of each container have
        """
        sizes: list[int] = (8 * np.frombuffer(self.sizes, np.int64)).tolist()
        return sizes


class Look(Protocol):
    """Sees what some containers refer to. What two looks have seen can be compared while all of it is alive."""

    def __call__(self) -> Seen: ...


class ListLook:
    """
    Reads the addresses of all that lists hold.

    :param lists: The lists, to be kept alive
    """

    def __init__(self, lists: Sequence[list[Any]]) -> None:
        self.heads = places_of(id(one) + offset for one in lists for offset in (LENGTH, ITEMS))
        self.known_heads = b""

    def __call__(self) -> Seen:
        heads = words()[self.heads]
        found = heads.tobytes()
        if found != self.known_heads:  # lists are elsewhere, or of another length
            self.known_heads = b""  # until all of it is known: an interrupt may come in between
            sizes, items = heads.view(np.int64).reshape(-1, 2).T
            starts = ((items - MEMORY_START) >> 3) - (np.cumsum(sizes) - sizes)
            self.items: np.ndarray = np.repeat(starts, sizes) + np.arange(sizes.sum())
            self.sizes, self.known_heads = sizes.tobytes(), found
        return Seen(self.sizes, words()[self.items].tobytes())


class VersionLook:
    """
    Reads the versions of dicts.

    :param dicts: The dicts, to be kept alive
    """

    def __init__(self, dicts: Sequence[dict[Any, Any]]) -> None:
        self.places = places_of(id(one) + VERSION for one in dicts)
        self.sizes = np.ones(len(dicts), np.int64).tobytes()

    def __call__(self) -> Seen:
        return Seen(self.sizes, words()[self.places].tobytes())


class DictLook:
    """
    Reads the addresses of all keys and values of dicts that have no versions.

    :param dicts: The dicts
    """

    def __init__(self, dicts: Sequence[dict[Any, Any]]) -> None:
        self.dicts = dicts

    def __call__(self) -> Seen:
        parts = itertools.chain.from_iterable(zip(self.dicts, map(dict.values, self.dicts)))  # noqa: B905  hot
        sizes = 2 * np.fromiter(map(len, self.dicts), np.int64)
        return Seen(sizes.tobytes(), addresses(list(itertools.chain.from_iterable(parts))))
