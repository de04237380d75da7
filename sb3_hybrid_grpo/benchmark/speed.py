"""
Speed of HybridGRPO beside SB3's PPO, sb3-contrib's TRPO, SBX's PPO and a bare ``env.step`` loop, on one core.

A busy machine changes its speed from second to second. So every measurement of HybridGRPO comes right after one of PPO and one
of the bare loop. Ratios are formed pair by pair, and the tables show their median, lowest and highest. The learning rate is 0,
so that every repeat measures the same policy (except TRPO's). A new measurement of an env replaces the old one.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch as th

from sb3_hybrid_grpo.__main__ import run_command
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.plots import save_intervals
from sb3_hybrid_grpo.benchmark.results import Results, stamp
from sb3_hybrid_grpo.benchmark.speed_cases import BREAKOUT, RAW_LOOP, SBX, Measurement, Size, measure_speed
from sb3_hybrid_grpo.commands.cli import install_command, output_folder, require_modules, write_text
from sb3_hybrid_grpo.commands.evaluation import make_env

STATISTICS = ("median", "min", "max")
# Networks for images take a hundred times as long, and convolutions are not recorded.
IMAGES, TINY = Size(1024, 1, 3, warm_up=0), Size(256, 1, 1, 0.01, warm_up=0)
ENVS = ("CartPole-v1", "hybrid_grpo/Inventory-v0", "Pendulum-v1", "HalfCheetah-v5", "Ant-v5", BREAKOUT)


class Section(NamedTuple):
    """A table of speeds in the CSV ``name``, with a heading and an explanation."""

    name: str
    title: str
    text: str
    labels: dict[str, str]  # titles of the columns that identify a row, by name; the first is the env
    columns: dict[str, tuple[str, int]]  # titles and digits of the number columns, by name
    settings: tuple[str, ...] = ("samples", "n_epochs", "repeats")  # numbers depend on these, the machine and versions

    def results(self, folder: Path) -> Results:
        """The section's table; each env is a run of its own."""
        numbers = {f"{name}_{statistic}": float for name in self.columns for statistic in STATISTICS}
        texts = dict.fromkeys((*self.settings, "made_with"), str)
        return Results(folder / f"{self.name}.csv", {**dict.fromkeys(self.labels, str), **numbers, **texts}, ["env"])

    def summarise(self, measurements: Sequence[Measurement], size: Size) -> pd.DataFrame:
        """Median, lowest and highest of the measurements of each case, to five digits."""
        frame = pd.DataFrame(measurements).reindex(columns=[*self.labels, *self.columns])
        found = frame.groupby(list(self.labels), sort=False)[list(self.columns)].agg(list(STATISTICS))
        found.columns = pd.Index([f"{name}_{statistic}" for name, statistic in found.columns])
        found = found.map(lambda value: float(f"{value:.5g}")).reset_index()
        settings = {name: str(getattr(size, name)) for name in self.settings}
        return found.assign(**settings, made_with=plain(stamp()))


GROUP_LABELS = {"n_samples": "N", "branch_horizon": "K"}
KINDS = {"rollout": "rollout: simulator steps/s", "update": "update: samples/s", "overall": "both: samples/s"}
PER_SECOND = {key: one for name, title in KINDS.items() for key, one in ((name, (title, 0)), (f"{name}_to_ppo", ("× PPO", 2)))}
RAW = "share of the env.step loop", 2
ALGORITHMS = Section(
    "speed",
    "Algorithms",
    "Each with the same number of samples in a rollout, and of envs; minibatches of 64. TRPO's update is one step of its "
    "policy and ten epochs of its critic. Both: rollout and update together.",
    {"env": "env", "n_envs": "envs", "algorithm": "algorithm", **GROUP_LABELS},
    {name: PER_SECOND.get(name, RAW) for name in ("rollout", "rollout_to_ppo", "rollout_to_raw", *PER_SECOND)},
)
INTRODUCTION = """\
# Speed

Medians over repeats (lowest–highest). A ratio is formed of two measurements of one round, seconds apart, so a busy machine
favours neither. One thread on one core, a core for each worker. Made by `python -m sb3_hybrid_grpo.benchmark.speed`."""


def section_text(section: Section, rows: pd.DataFrame) -> list[str]:
    """Write a section of a page: medians, with lowest and highest if these differ."""

    def cell(row: dict[str, float], name: str, digits: int) -> str:
        middle, low, high = (f"{row[f'{name}_{statistic}']:,.{digits}f}" for statistic in STATISTICS)
        return "" if middle == "nan" else middle if low == high else f"{middle} ({low}–{high})"

    header = [*section.labels.values(), *(title for title, _ in section.columns.values())]
    cells = [
        [*(row[name] for name in section.labels), *(cell(row, name, digits) for name, (_, digits) in section.columns.items())]
        for row in rows.to_dict("records")
    ]
    parts = [f"## {section.title}", section.text, table(header, cells)]
    for made, shared in rows.groupby([*section.settings, "made_with"], sort=False):
        settings = [f"{name} {value}" for name, value in zip(section.settings, made, strict=False)]
        parts.append(f"{', '.join(dict.fromkeys(shared.env))}: {', '.join([*settings, made[-1]])}.")
    return parts


def time_table(rows: pd.DataFrame) -> list[str]:
    """Split the time of a sample into a step of the bare loop, the rest of a rollout, and the update."""
    raw = rows[rows.algorithm == RAW_LOOP].set_index("env").rollout_median
    cells = []
    for row in rows[rows.update_median.notna() & rows.env.isin(raw.index)].to_dict("records"):
        step, rollout, update = (1e6 / value for value in (raw[row["env"]], row["rollout_median"], row["update_median"]))
        parts = (step, rollout - step, update, rollout + update)
        cells.append([*(row[name] for name in ("env", "algorithm", *GROUP_LABELS)), *(f"{part:,.1f}" for part in parts)])
    return [
        "### Where the time goes",
        "Microseconds a sample, from the medians above: a step of the env as in the bare loop, what a rollout takes besides "
        "(siblings skip wrappers that only check, which the loop does not), and the update with all its epochs.",
        table(["env", "algorithm", "N", "K", "env.step", "rollout besides", "update", "together"], cells),
    ]


def save_page(folder: Path) -> None:
    """Save ``speed.md`` and its picture for all measured envs."""
    rows = ALGORITHMS.results(folder).frame
    groups = [f"{one.algorithm} N = {one.n_samples}, K = {one.branch_horizon}" for one in rows.itertuples()]
    named = rows.assign(panel=rows.env.str.rpartition("/")[2], case=rows.algorithm.where(rows.n_samples == "", groups))
    columns = {kind.partition(":")[0]: tuple(f"{name}_to_ppo_{end}" for end in STATISTICS) for name, kind in KINDS.items()}
    others = named[~rows.algorithm.isin([RAW_LOOP, "PPO"])]
    save_intervals(folder / "speed.png", others, columns, "times as fast as PPO", columns=4)
    parts = [INTRODUCTION, *section_text(ALGORITHMS, rows)]
    without = [env for env, one in rows.groupby("env", sort=False) if SBX not in set(one.algorithm)]
    if without:
        parts.append(f"{SBX} was not measured in {', '.join(without)}: it was not installed. {install_command('speed')}")
    write_text(folder / "speed.md", "\n\n".join([*parts, "![Algorithms](speed.png)", *time_table(rows)]) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    folder, names = Path("speed_benchmark"), [env.rpartition(":")[2] for env in ENVS]
    parser.add_argument("--output", type=Path, default=folder, help="folder for speed.md and speed.csv (default: %(default)s)")
    parser.add_argument("--envs", nargs="+", choices=names, default=names, help="in which envs (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers mean nothing")
    parser.add_argument("--report-only", action="store_true", help="write the page of the table that is there")


def run(options: argparse.Namespace) -> int:
    """Measure, save env by env, and print the page's path; the exit code is 0."""
    require_modules(["matplotlib", "tqdm", "tabulate"], "speed")
    from tqdm import tqdm

    envs = [] if options.report_only else [env for env in ENVS if env.rpartition(":")[2] in options.envs]
    for env in envs:
        make_env(env, 1, 0).close()  # finds missing packages early
    results = ALGORITHMS.results(output_folder(options.output))  # finds a wrong table early
    th.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if envs and cores:  # one core also for JAX, which has no option for its number of threads
        os.sched_setaffinity(0, {max(cores)})
    for env in (bar := tqdm(envs, unit="env")):
        bar.set_description(env)
        size = TINY if options.quick else IMAGES if env == BREAKOUT else Size()
        results.add(ALGORITHMS.summarise(measure_speed(env, size), size))
        save_page(options.output)
    if envs and cores:
        os.sched_setaffinity(0, cores)
    save_page(options.output)
    print(f"Saved: {options.output / 'speed.md'}, and the table beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("sb3_hybrid_grpo.benchmark.speed", "python -m sb3_hybrid_grpo.benchmark.speed", sys.argv[1:]))
