"""Signatures of constructors that pass arguments on."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

Algorithm = TypeVar("Algorithm", bound=type[Any])


def show_arguments(algorithm: Algorithm) -> Algorithm:
    """
    Class decorator: ``inspect.signature`` shows the constructor's real arguments instead of ``*args, **kwargs``: those of the
    algorithm without groups, then the groups' own, which are keyword-only.
    """
    init = algorithm.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

    ours = [one for one in inspect.signature(init).parameters.values() if one.kind is one.KEYWORD_ONLY]
    theirs = inspect.signature(algorithm._without_groups.__init__).parameters.values()
    __init__.__signature__ = inspect.Signature([*theirs, *ours])  # type: ignore[attr-defined]
    algorithm.__init__ = __init__
    return algorithm


def arguments_of(algorithm: type[Any]) -> list[str]:
    """The names of the arguments of a constructor."""
    return list(inspect.signature(algorithm).parameters)


def refuse_unknown(given: Iterable[str], name: str, known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise a TypeError if not all given arguments are known, and suggest the closest ones, also among others."""
    if unknown := sorted(set(given) - set(known)):
        names = [*known, *others]
        closest = [match for one in unknown for match in difflib.get_close_matches(one, names, n=1)]
        hint = f" Did you mean {', '.join(closest)}?" if closest else ""
        raise TypeError(f"{name} has no argument {', '.join(unknown)}.{hint}")
