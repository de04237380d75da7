"""What the speed benchmark measured, as a Markdown table and a CSV."""

import csv
import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch as th

from sb3_hybrid_grpo.cli import versions, write_text

SPEEDS = ("rollout", "update", "overall")
RATIOS = ("rollout_to_ppo", "rollout_to_raw", "update_to_ppo", "overall_to_ppo")


@dataclass
class Row:
    """
    All measurements of one case.

    :param env_id: The env's id.
    :param n_envs: Number of envs.
    :param algorithm: What was measured.
    :param n_samples: Group size N, where the algorithm has one.
    :param branch_horizon: Branch horizon K, where the algorithm has one.
    :param values: Measurements by name: speeds per second, and ratios of the measurements of one pair.
    """

    env_id: str
    n_envs: int
    algorithm: str
    n_samples: int | None = None
    branch_horizon: int | None = None
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """
        Add one measurement.

        :param values: By name.
        """
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def speed(self, name: str) -> str:
        """
        Show a speed.

        :param name: One of ``SPEEDS``.
        :return: The median, or nothing where it was not measured.
        """
        return f"{median(self.values[name]):,.0f}" if name in self.values else ""

    def ratio(self, name: str) -> str:
        """
        Show a ratio.

        :param name: One of ``RATIOS``.
        :return: The median with the lowest and the highest, or nothing where it was not measured.
        """
        if name not in self.values:
            return ""
        values = self.values[name]
        return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


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
    return machine | versions()


def markdown_table(rows: Sequence[Row], settings: dict[str, int]) -> str:
    """
    Write the table for people.

    :param rows: One per case.
    :param settings: What all cases share.
    :return: Markdown.
    """
    header = (
        "env (envs)",
        "algorithm",
        "N",
        "K",
        "rollout: simulator steps/s",
        "× PPO",
        "× env.step loop",
        "update: samples/s",
        "× PPO",
        "both: samples/s",
        "× PPO",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{row.env_id} ({row.n_envs})", row.algorithm, str(row.n_samples or ""), str(row.branch_horizon or "")]
        cells += [row.speed("rollout"), row.ratio("rollout_to_ppo"), row.ratio("rollout_to_raw")]
        cells += [row.speed("update"), row.ratio("update_to_ppo"), row.speed("overall"), row.ratio("overall_to_ppo")]
        lines.append("| " + " | ".join(cells) + " |")
    shared = ", ".join(f"{name} {value}" for name, value in (settings | environment()).items())
    notes = f"Medians; of ratios, formed pair by pair, also (lowest–highest). One thread. {shared}."
    return "\n".join([*lines, "", notes, ""])


def csv_table(rows: Sequence[Row], settings: dict[str, int]) -> str:
    """
    Write the table for programs.

    :param rows: One per case.
    :param settings: What all cases share.
    :return: CSV.
    """
    stream = io.StringIO()
    names = ["env", "n_envs", "algorithm", "n_samples", "branch_horizon"]
    names += [f"{name}_per_second" for name in SPEEDS]
    names += [f"{name}_{statistic}" for name in RATIOS for statistic in ("median", "min", "max")]
    writer = csv.DictWriter(stream, [*names, *settings, *environment()], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells: dict[str, object] = {"env": row.env_id, "n_envs": row.n_envs, "algorithm": row.algorithm}
        cells |= {"n_samples": row.n_samples, "branch_horizon": row.branch_horizon}
        for name in SPEEDS:
            if name in row.values:
                cells[f"{name}_per_second"] = round(median(row.values[name]), 1)
        for name in RATIOS:
            if name in row.values:
                values = row.values[name]
                cells |= {f"{name}_median": round(median(values), 3)}
                cells |= {f"{name}_min": round(min(values), 3), f"{name}_max": round(max(values), 3)}
        writer.writerow({**cells, **settings, **environment()})
    return stream.getvalue()


def save_report(folder: Path, rows: Sequence[Row], settings: dict[str, int]) -> str:
    """
    Save ``speed.csv`` and ``speed.md``.

    :param folder: An existing folder.
    :param rows: One per case.
    :param settings: What all cases share.
    :return: The Markdown table and the paths, to print.
    """
    table = markdown_table(rows, settings)
    write_text(folder / "speed.md", table)
    write_text(folder / "speed.csv", csv_table(rows, settings))
    return f"{table}\nSaved: {folder / 'speed.md'}, {folder / 'speed.csv'}"
