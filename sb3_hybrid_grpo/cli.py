"""What the commands share: an error for mistyped input, run folders, files that are complete or absent."""

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
    Write a file so that it is never seen half written: the new content goes to a neighbour, which takes the name at the end.

    :param path: The file to write or replace.
    :return: A context manager that yields the neighbour's path; after an error, ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """
    Write a text file in one go (see :func:`replacing`).

    :param path: The file to write or replace.
    :param text: All of its content.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def output_folder(path: Path) -> Path:
    """
    Make a folder, its parents included.

    :param path: The folder; it may exist.
    :return: The same path.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"received {str(path)!r} as the folder to write to, which cannot be made ({error}); name one that can be written"
        ) from error
    return path


def next_run_folder(parent: Path, name: str) -> Path:
    """
    Make ``parent/name_1``, or the next number that no folder has.

    :param parent: Folder of the runs; made if it is missing.
    :param name: Usually the env id; slashes become dashes, a ``module:`` prefix is dropped.
    :return: The new, empty folder.
    """
    name = name.rpartition(":")[2].replace("/", "-")
    output_folder(parent)
    taken = [entry.name.removeprefix(f"{name}_") for entry in parent.glob(f"{name}_*")]
    number = 1 + max((int(number) for number in taken if number.isdecimal()), default=0)
    while True:
        folder = parent / f"{name}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run took it between the look and the making
            number += 1
        except OSError as error:
            raise CommandError(f"cannot make the folder {str(folder)!r} ({error}); choose another --output-dir") from error
        else:
            return folder


def require_modules(modules: Sequence[str], extra: str) -> None:
    """
    Stop with the command that installs what is missing, before anything was started.

    :param modules: Top-level modules that the command imports.
    :param extra: The package's extra that brings them.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {', '.join(missing)}; install with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """
    Name the command that installs an extra.

    :param extra: One of this package's extras.
    :return: The command line.
    """
    return f'pip install "sb3-hybrid-grpo[{extra}]" (in a clone: pip install -c constraints.txt -e ".[{extra}]")'


def versions() -> dict[str, str]:
    """
    Name what results were made with.

    :return: Version by package.
    """
    return {
        "sb3_hybrid_grpo": __version__,
        "stable_baselines3": sb3.__version__,
        "gymnasium": gym.__version__,
        "torch": th.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
