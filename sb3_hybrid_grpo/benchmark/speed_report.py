"""The numbers of the speed benchmark: rows, and a CSV for every section."""

import csv
import importlib.metadata
import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch as th

from sb3_hybrid_grpo.cli import CommandError, versions, write_text

STATISTICS = ("median", "min", "max")


@dataclass
class Row:
    """
    All measurements of one case.

    :param labels: What was measured, by the names of its section's table.
    :param made_with: How it was measured; all rows of a section have the same names.
    :param values: Measurements by name: speeds, times, ratios of the measurements of one pair. Of a row that was read from a
        file, the lowest, the median and the highest.
    """

    labels: dict[str, str]
    made_with: dict[str, str]
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """What tells it from the other rows of its env."""
        _, *others = self.labels.values()
        return " ".join(filter(None, others))

    def add(self, **values: float) -> None:
        """
        Add one measurement.

        :param values: By name.
        """
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def statistics(self, name: str) -> tuple[float, float, float] | None:
        """
        Sum up.

        :param name: Of a value.
        :return: Its median, lowest and highest; None where it was not measured.
        """
        values = self.values.get(name)
        return None if values is None else (median(values), min(values), max(values))


class Column(NamedTuple):
    """
    A value in a table.

    :param name: The value's name.
    :param title: What people read above it.
    :param digits: Digits behind the point.
    """

    name: str
    title: str
    digits: int = 2

    def cell(self, row: Row) -> str:
        """
        Show the value.

        :param row: Of which row.
        :return: The median, with the lowest and the highest where these differ; nothing where it was not measured.
        """
        statistics = row.statistics(self.name)
        if statistics is None:
            return ""
        middle, lowest, highest = (f"{value:,.{self.digits}f}" for value in statistics)
        return middle if lowest == highest else f"{middle} ({lowest}–{highest})"


class Table(NamedTuple):
    """
    What a section of the benchmark finds.

    :param section: Its name.
    :param title: Its heading.
    :param text: What people have to know.
    :param labels: Title by name of what tells rows apart; the first is the env.
    :param columns: The values.
    :param settings: Names of what numbers depend on besides machine and versions.
    """

    section: str
    title: str
    text: str
    labels: dict[str, str]
    columns: tuple[Column, ...]
    settings: tuple[str, ...] = ("samples", "n_epochs", "repeats")

    def fields(self) -> list[str]:
        """
        Name the columns of the CSV.

        :return: In their order.
        """
        numbers = [f"{column.name}_{statistic}" for column in self.columns for statistic in STATISTICS]
        return [*self.labels, *numbers, *self.settings, *environment()]

    def path(self, folder: Path) -> Path:
        """
        Name the section's file.

        :param folder: The benchmark's folder.
        :return: Its CSV.
        """
        return folder / f"{self.section}.csv"


def cpu_model() -> str:
    """
    Name the processor.

    :return: Its model, as far as the system tells.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """
    Name the machine and the versions.

    :return: By what it is.
    """
    machine = {"cpu": cpu_model(), "cores": str(os.cpu_count()), "torch_threads": str(th.get_num_threads())}
    return machine | versions() | {name: _version(name) for name in ("sb3_contrib", "sbx_rl", "jax")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def read_rows(folder: Path, table: Table) -> list[Row]:
    """
    Read what a section found.

    :param folder: The benchmark's folder.
    :param table: The section's table.
    :return: Its rows; none if it was not measured yet.
    :raises CommandError: if the file is no such table.
    """
    path = table.path(folder)
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != table.fields():
                raise ValueError(f"its columns are {reader.fieldnames}, needed are {table.fields()}")
            return [_row(line, table) for line in reader]
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(
            f"{path} holds no results of this benchmark: {error}. Move it away, or choose another --output."
        ) from None


def _row(line: dict[str, str], table: Table) -> Row:
    row = Row({name: line[name] for name in table.labels}, {name: line[name] for name in (*table.settings, *environment())})
    for column in table.columns:
        texts = [line[f"{column.name}_{statistic}"] for statistic in STATISTICS]
        if texts[0]:
            row.values[column.name] = [float(text) for text in texts]
    return row


def add_rows(folder: Path, table: Table, rows: Sequence[Row]) -> None:
    """
    Add what was measured in an env to the section's file, in the place of what was known of that env.

    :param folder: The benchmark's folder.
    :param table: The section's table.
    :param rows: All of one env.
    """
    known, (env, *_) = read_rows(folder, table), table.labels
    is_other = [row.labels[env] != rows[0].labels[env] for row in known]
    place = is_other.index(False) if False in is_other else len(known)
    others = [row for row, other in zip(known, is_other, strict=True) if other]
    for row in rows:
        row.made_with = row.made_with | environment()
    write_text(table.path(folder), csv_text(table, [*others[:place], *rows, *others[place:]]))


def csv_text(table: Table, rows: Sequence[Row]) -> str:
    """
    Write a table for programs.

    :param table: The section's table.
    :param rows: Its rows.
    :return: CSV.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, table.fields(), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = row.labels | row.made_with
        for column in table.columns:
            for statistic, value in zip(STATISTICS, row.statistics(column.name) or (), strict=False):
                cells[f"{column.name}_{statistic}"] = f"{value:.5g}" if abs(value) < 1e4 else f"{value:.0f}"
        writer.writerow(cells)
    return stream.getvalue()
