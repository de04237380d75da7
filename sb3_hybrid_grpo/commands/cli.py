"""Helpers for all commands: an error for mistyped input, atomic writes, versions."""

import importlib.util
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from sb3_hybrid_grpo import __version__
from sb3_hybrid_grpo.model_files import replacing


class CommandError(Exception):
    """An error in the user's input. It is printed as one line, without a traceback, with exit code 2."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def output_folder(path: Path) -> Path:
    """Make a folder and its parents, unless they exist; CommandError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            f"received the output folder {str(path)!r}, which cannot be made ({error}); name a folder that can be written"
        ) from error
    return path


def require_modules(modules: Sequence[str], extra: str) -> None:
    """Raise a CommandError if one of the modules is missing; it names the extra that installs them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise CommandError(f"this command needs {', '.join(missing)}; install with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command line that installs one of this package's extras."""
    return f'pip install "sb3-hybrid-grpo[{extra}]" (in a clone: pip install -c constraints.txt -e ".[{extra}]")'


def versions() -> dict[str, str]:
    """Versions of the packages on which all results depend."""
    others = {name: metadata.version(name) for name in ("stable_baselines3", "gymnasium", "torch", "numpy")}
    return {"sb3_hybrid_grpo": __version__, **others, "python": platform.python_version()}
