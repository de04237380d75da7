"""
Tables of results in CSV files that grow run by run. A JSON beside each CSV records how the results were made.

``simulator_steps`` (0.1's ``num_simulator_steps``, 0.2's ``num_timesteps``) include siblings, ``executed_steps`` (0.1's
``num_timesteps``, 0.2's ``num_executed_steps``) do not. 0.1's ``settings`` have ``executed_steps`` for its ``n_steps``.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_hybrid_grpo.commands.cli import CommandError, versions, write_text
from sb3_hybrid_grpo.model_files import replacing


class Results:
    """
    A table in a CSV, which need not exist yet.

    :param columns: The type of each column: ``str``, ``int`` or ``float``.
    :param key: The columns that identify a run. Rows of a run are added together.
    :raises CommandError: if the file holds another table
    """

    def __init__(self, path: Path, columns: Mapping[str, type], key: Sequence[str]) -> None:
        self.path, self.columns, self.key = path, dict(columns), list(key)
        self.frame = self.read()

    def read(self) -> pd.DataFrame:
        """Read the file anew; a table without rows if there is none."""
        if not self.path.exists():
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in self.columns.items()})
        numbers = {name: [""] for name, kind in self.columns.items() if kind is not str}
        try:
            frame = pd.read_csv(self.path, keep_default_na=False, na_values=numbers, dtype=str)
            missing = list(self.columns)[len(frame.columns) :]  # older runs lack the number columns of newer versions
            if [*frame, *missing] != list(self.columns) or any(self.columns[name] is not float for name in missing):
                raise ValueError(f"its columns are {list(frame)}, needed are {list(self.columns)}")
            return frame.reindex(columns=list(self.columns)).astype(self.columns)
        except (OSError, ValueError) as error:
            raise CommandError(f"{self.path} holds no results of this benchmark: {error}. Name another folder.") from None

    def done(self) -> set[tuple[Any, ...]]:
        """The keys of all runs that are in the table."""
        return set(self.frame[self.key].itertuples(index=False, name=None))

    def add(self, rows: pd.DataFrame) -> None:
        """Add all rows of a run, atomically, in place of earlier rows of the same run."""
        known = self.read()  # another process may have added rows
        same = (known[self.key] == list(rows.iloc[0][self.key])).all(axis=1).to_numpy()
        place, others = int(same.argmax()) if same.any() else len(known), known[~same]
        parts = [part for part in (others[:place], rows[list(self.columns)], others[place:]) if len(part)]
        self.frame = pd.concat(parts, ignore_index=True).astype(self.columns)
        with replacing(self.path) as temporary:
            self.frame.to_csv(temporary, index=False, lineterminator="\n")


def read_notes(path: Path) -> dict[str, Any]:
    """Read the JSON that records how results were made; empty if there is no file, CommandError if it cannot be read."""
    if not path.exists():
        return {}
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"{path}, which says how results were made, cannot be read: {error}") from None


def write_notes(path: Path, notes: Mapping[str, Any]) -> None:
    """Write the JSON that records how results were made."""
    write_text(path, json.dumps(notes, indent=2) + "\n")


def stamp() -> dict[str, str]:
    """Versions of the packages that results depend on, and the machine."""
    others = {"sb3_contrib": "sb3_contrib", "sbx": "sbx_rl", "jax": "jax"}
    installed = {name: metadata.version(name) for module, name in others.items() if find_spec(module) is not None}
    return {**versions(), **installed, "machine": machine()}


def machine() -> str:
    """The processor, the number of cores, the operating system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {os.cpu_count()} cores, {platform.system()}"
