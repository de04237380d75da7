"""What a class says about the fields of its instances."""

import functools
import types
from typing import Any


class OutsideError(TypeError):
    """
    An object whose state is not in this process alone: forks would share it.

    :param reason: Why it can be neither saved nor forked
    :param advice: What to do instead
    """

    is_final = True

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


def name_of(kind: type) -> str:
    """
    :param kind: A class
    :return: Its full name, ``package.module.Name``
    """
    return f"{kind.__module__}.{kind.__qualname__}"


def package_of(kind: type) -> str:
    """
    :param kind: A class
    :return: The name of the outermost package that it is in; empty where the class does not say
    """
    module: Any = kind.__module__  # of Cython's functions, on Python 3.10, a descriptor
    return module.split(".")[0] if isinstance(module, str) else ""


@functools.lru_cache(maxsize=4096)
def slots_of(kind: Any) -> tuple[Any, ...]:
    """The descriptors of a class's slots: they read a slot where an attribute of a subclass hides it."""
    slots: list[Any] = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            slots.append(base.__dict__.get(f"_{base.__name__.lstrip('_')}{name}" if private else name))
    return tuple(slot for slot in slots if isinstance(slot, types.MemberDescriptorType))


def has_hidden_fields(kind: type, n_slots: int) -> bool:
    """Whether instances have room for more than a header, a ``__dict__``, weak references and slots: fields in C."""
    known = object.__basicsize__ + 8 * ((kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + n_slots)
    return kind.__basicsize__ > known or kind.__itemsize__ > 0
