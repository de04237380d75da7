"""The files of a comparison: per env, a CSV with a row for every evaluation, and a JSON that says how it was made."""

import csv
import io
import json
import os
import platform
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from sb3_hybrid_grpo.cli import CommandError, versions, write_text


@dataclass(frozen=True)
class Row:
    """
    One evaluation of one run.

    :param env: The env's id.
    :param algorithm: What was compared, as named on the command line.
    :param settings: How data was collected and used, such as ``n_envs:4 n_steps:128 batch_size:64``.
    :param seed: Number of the run.
    :param simulator_steps: Steps of the simulator that the policy was trained on, siblings' included.
    :param executed_steps: Those of member 0 alone; PPO's are its simulator steps.
    :param wall_seconds: Time spent in training, evaluations left out.
    :param mean_reward: Mean undiscounted reward of the evaluation's episodes; the policy alone, deterministic.
    :param episodes: How many episodes that were.
    """

    env: str
    algorithm: str
    settings: str
    seed: int
    simulator_steps: int
    executed_steps: int
    wall_seconds: float
    mean_reward: float
    episodes: int

    @property
    def run(self) -> tuple[str, str, int]:
        """What tells a run from the others of its env: algorithm, settings, seed."""
        return self.algorithm, self.settings, self.seed


COLUMNS = tuple(field.name for field in fields(Row))


class Results:
    """
    What is known of one env.

    :param folder: Folder of the comparison.
    :param env: The env's id; its files are called by it, without a ``module:`` prefix and with dashes for slashes.
    """

    def __init__(self, folder: Path, env: str) -> None:
        name = env.rpartition(":")[2].replace("/", "-")
        self.csv_path, self.json_path = folder / f"{name}.csv", folder / f"{name}.json"
        self.rows = read_rows(self.csv_path) if self.csv_path.exists() else []

    def check(self, protocol: dict[str, Any]) -> None:
        """
        Refuse to mix runs that cannot be compared; write the protocol down where there is none yet.

        :param protocol: All that the runs of an env share, for JSON: budget, evaluations, hyperparameters. Versions and
            machine are noted beside it, one entry for each that added results.
        :raises CommandError: if there are results that were made otherwise.
        """
        known = self._read_protocol() if self.rows else dict(protocol)
        wanted = json.loads(json.dumps(protocol))
        differing = [key for key in wanted if known.get(key) != wanted[key]]
        if differing:
            received = "; ".join(f"{key} is {wanted[key]!r}, there {known.get(key)!r}" for key in differing)
            raise CommandError(
                f"{self.csv_path} holds results of other settings: {received}. "
                "Results are comparable only if these agree: use the same, or choose another --output."
            )
        made_with = known.setdefault("made_with", [])
        here = {**versions(), "machine": machine()}
        if here not in made_with:
            made_with.append(here)
        write_text(self.json_path, json.dumps(known, indent=2) + "\n")

    def _read_protocol(self) -> dict[str, Any]:
        try:
            known = json.loads(self.json_path.read_text(encoding="utf-8"))
            return {**known}
        except (OSError, ValueError, TypeError) as error:
            raise CommandError(
                f"{self.csv_path} has results, but {self.json_path}, which says how they were made, cannot be read: {error}. "
                "Restore it, or choose another --output."
            ) from None

    def add(self, rows: list[Row]) -> None:
        """
        Add a finished run; a crash leaves the file as it was or with all of them.

        :param rows: The run's rows.
        """
        known = read_rows(self.csv_path) if self.csv_path.exists() else []  # with what another command may have added
        self.rows = known + rows
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in self.rows)
        write_text(self.csv_path, text.getvalue())
        self._note_failure(rows[0].run, None)

    def fail(self, run: tuple[str, str, int], error: str) -> None:
        """
        Note that a run failed, so that no one takes those that did not for all of them.

        :param run: Its algorithm, settings and seed.
        :param error: What it ended with.
        """
        self._note_failure(run, error)

    def _note_failure(self, run: tuple[str, str, int], error: str | None) -> None:
        if not self.json_path.exists():
            return
        protocol = self._read_protocol()
        entry = dict(zip(("algorithm", "settings", "seed"), run, strict=True))
        failed = [one for one in protocol.get("failed", []) if {key: one[key] for key in entry} != entry]
        if error is not None:
            failed.append({**entry, "error": error})
        if failed or "failed" in protocol:
            write_text(self.json_path, json.dumps({**protocol, "failed": failed}, indent=2) + "\n")


def read_rows(path: Path) -> list[Row]:
    """
    Read results.

    :param path: The CSV of one env.
    :return: Its rows.
    :raises CommandError: if it is no such file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are {reader.fieldnames}, needed are {list(COLUMNS)}")
            types = {field.name: field.type for field in fields(Row)}
            return [Row(**{name: types[name](text) for name, text in line.items()}) for line in reader]  # type: ignore[operator]
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"{path} holds no results of a comparison: {error}") from None


def row_as_json(row: Row) -> str:
    """
    Write a row for another process.

    :param row: The row.
    :return: A line of JSON.
    """
    return json.dumps(asdict(row))


def machine() -> str:
    """
    Name what wall times were measured on.

    :return: The processor, and how many cores it has.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
