"""What the commands share: an error for mistyped input, and files that are complete or absent."""

import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th

from sb3_hybrid_grpo import __version__


class CommandError(Exception):
    """Input that a user can correct: printed as one line, without a traceback, with exit code 2."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Write a file so that it is never seen half written: the new content goes to a neighbour, whose path is yielded, and which
    takes the name at the end. After an error, ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def output_folder(path: Path) -> Path:
    """Make a folder, its parents included, unless it exists; CommandError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"received {str(path)!r} as the folder to write to, which cannot be made ({error}); name one that can be written"
        ) from error
    return path


def require_modules(modules: Sequence[str], extra: str) -> None:
    """Raise a CommandError if one of the modules is missing, with the command that installs the extra which brings them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {', '.join(missing)}; install with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command line that installs one of this package's extras."""
    return f'pip install "sb3-hybrid-grpo[{extra}]" (in a clone: pip install -c constraints.txt -e ".[{extra}]")'


def versions() -> dict[str, str]:
    """Versions of the packages that every result depends on."""
    others = {one.__name__: str(vars(one)["__version__"]) for one in (sb3, gym, th, np)}
    return {"sb3_hybrid_grpo": __version__, **others, "python": platform.python_version()}
