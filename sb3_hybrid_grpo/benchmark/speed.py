"""
Speed of HybridGRPO beside SB3's PPO, sb3-contrib's TRPO, SBX's PPO and a bare ``env.step`` loop, on one core.

``python -m sb3_hybrid_grpo.benchmark.speed --output speed_benchmark``

A busy machine changes its speed from second to second. So every measurement of HybridGRPO is taken right after one of PPO and
one of the bare loop, ratios are formed pair by pair, and the tables show their median with the lowest and the highest.
The learning rate is 0: every repeat measures the same policy (but TRPO's, whose steps need none), and an
update costs the same as any other. Results are saved env by env: a new measurement takes the place of the one of its env.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch as th

from sb3_hybrid_grpo.__main__ import run_command
from sb3_hybrid_grpo.benchmark import speed_cases as cases
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.plots import save_speed
from sb3_hybrid_grpo.benchmark.results import Results, stamp
from sb3_hybrid_grpo.benchmark.speed_cases import BREAKOUT, RAW_LOOP, SBX, Add, Measurement, Size, short_name
from sb3_hybrid_grpo.commands.cli import CommandError, install_command, output_folder, require_modules, write_text

STATISTICS = ("median", "min", "max")
SETTINGS = ("samples", "n_epochs", "repeats")
# By kind of observation: networks for images take a hundred times as long, and convolutions are not recorded.
SIZES = {"vectors": Size(), "images": Size(256, 4, 3, warm_up=0), "brief": Size(2048, 2, 5)}
TINY = Size(256, 1, 1, 0.01, warm_up=0)
EXTRAS = {
    "mujoco": (("mujoco", "imageio"), {"HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5"}),
    "box2d": (("Box2D",), {"LunarLander-v3", "BipedalWalker-v3"}),
    "atari": (("ale_py", "cv2"), {BREAKOUT}),
}


class Section(NamedTuple):
    """
    A part of the benchmark.

    :param name: Of its CSV.
    :param title: Its heading.
    :param text: What people have to know.
    :param labels: Title by name of what tells rows apart; the first is the env.
    :param columns: Title and digits by name of the numbers.
    :param envs: Ids of its envs.
    :param measure: Measures one of them.
    :param size: Of ``SIZES``, for vectors.
    :param settings: What numbers depend on besides machine and versions.
    """

    name: str
    title: str
    text: str
    labels: dict[str, str]
    columns: dict[str, tuple[str, int]]
    envs: Sequence[str]
    measure: Callable[[str, Size, Add], None]
    size: str = "brief"
    settings: Sequence[str] = SETTINGS

    def results(self, folder: Path) -> Results:
        """The section's table, in which the unit of work is an env."""
        numbers = {f"{name}_{statistic}": float for name in self.columns for statistic in STATISTICS}
        texts = dict.fromkeys((*self.settings, "made_with"), str)
        return Results(folder / f"{self.name}.csv", {**dict.fromkeys(self.labels, str), **numbers, **texts}, ["env"])

    def summarise(self, measurements: Sequence[Measurement], settings: dict[str, str]) -> pd.DataFrame:
        """Median, lowest and highest of the measurements of each case, to five digits."""
        frame = pd.DataFrame(measurements).reindex(columns=[*self.labels, *self.columns])
        found = frame.groupby(list(self.labels), sort=False)[list(self.columns)].agg(list(STATISTICS))
        found.columns = pd.Index([f"{name}_{statistic}" for name, statistic in found.columns])
        found = found.map(lambda value: float(f"{value:.5g}")).reset_index()
        return found.assign(**settings, made_with=plain(stamp()))


_GROUPS = {"n_samples": "N", "branch_horizon": "K"}
_ROLLOUT = {"rollout": ("rollout: simulator steps/s", 0), "rollout_to_ppo": ("× PPO", 2)}
_UPDATE = {"update": ("update: samples/s", 0), "update_to_ppo": ("× PPO", 2)}
PER_SECOND = {**_ROLLOUT, **_UPDATE, "overall": ("both: samples/s", 0), "overall_to_ppo": ("× PPO", 2)}
SECTIONS = {
    "speed": Section(
        "speed",
        "Algorithms",
        "Each with the same number of samples in a rollout, and of envs; minibatches of 64. TRPO's update is one step of its "
        "policy and ten epochs of its critic. Both: rollout and update together.",
        {"env": "env", "n_envs": "envs", "algorithm": "algorithm", **_GROUPS},
        {**_ROLLOUT, "rollout_to_raw": ("share of the env.step loop", 2), **PER_SECOND},
        (
            *("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Ant-v5", "LunarLander-v3", "BipedalWalker-v3"),
            *("hybrid_grpo/Inventory-v0", BREAKOUT),
        ),
        cases.measure_speed,
        "vectors",
    ),
    "states": Section(
        "states",
        "The update of a state",
        "PPO and HybridGRPO with K = 1 on the same number of states: what N samples of a state cost, over what PPO pays for "
        "one. Minibatches of 64 states, as PPO's, and of 64 samples. `samples` are PPO's.",
        {"env": "env", "algorithm": "algorithm", **_GROUPS, "minibatch_states": "states in a minibatch"},
        {"update": ("update: µs a state", 1), "update_to_ppo": ("time × PPO's", 2)},
        ("CartPole-v1", "HalfCheetah-v5", BREAKOUT),
        cases.measure_states,
    ),
    "branching": Section(
        "branching",
        "Branching alone",
        "A step of the whole group, with random actions, over N plain steps of the env; and what that leaves for a sibling, "
        "forks included, over one plain step. Both in turn, block by block, in one process. K = 1: all siblings branch at "
        "every step. K = 64: they live on.",
        {"env": "env", **_GROUPS, "siblings": "siblings are"},
        {
            **{"step": ("plain step: µs", 1), "group_step": ("group's step: µs", 1)},
            **{"slow_down": ("× N plain steps", 2), "sibling": ("a sibling's step × a plain one", 2)},
        },
        (
            *("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Hopper-v5", "LunarLander-v3", "BipedalWalker-v3"),
            *("Ant-v5", "Humanoid-v5", BREAKOUT),
        ),
        cases.measure_branching,
        settings=("repeats",),
    ),
    "workers": Section(
        "workers",
        "Workers",
        "Rollouts in a SubprocVecEnv, one env in each of its processes, which run beside this one.",
        {"env": "env", "algorithm": "algorithm", **_GROUPS, "vec_env": "envs in", "n_envs": "envs"},
        {"rollout": _ROLLOUT["rollout"], "to_one": ("× one worker", 2), "to_dummy": ("× DummyVecEnv of as many", 2)},
        ("Ant-v5",),
        cases.measure_workers,
    ),
}
ENVS = tuple(dict.fromkeys(short_name(env) for section in SECTIONS.values() for env in section.envs))
INTRODUCTION = """\
# Speed

Medians over repeats (lowest–highest). A ratio is formed of two measurements of one round, seconds apart, so a busy machine
favours neither. One thread on one core, a core for each worker. Made by `python -m sb3_hybrid_grpo.benchmark.speed`."""


def cell(row: dict[str, float], name: str, digits: int) -> str:
    """Write a median, with the lowest and the highest where these differ; nothing where it was not measured."""
    middle, lowest, highest = (f"{row[f'{name}_{statistic}']:,.{digits}f}" for statistic in STATISTICS)
    return "" if middle == "nan" else middle if lowest == highest else f"{middle} ({lowest}–{highest})"


def section_text(section: Section, rows: pd.DataFrame) -> list[str]:
    """Write a section of the page."""
    header = [*section.labels.values(), *(title for title, _ in section.columns.values())]
    cells = [
        [*(row[name] for name in section.labels), *(cell(row, name, digits) for name, (_, digits) in section.columns.items())]
        for row in rows.to_dict("records")
    ]
    parts = [f"## {section.title}", section.text, table(header, cells)]
    for made, shared in rows.groupby([*section.settings, "made_with"], sort=False):
        settings = ", ".join(f"{name} {value}" for name, value in zip(section.settings, made, strict=False))
        parts.append(f"{', '.join(dict.fromkeys(shared.env))}: {settings}, {made[-1]}.")
    if section.name == "speed":
        without = [env for env, one in rows.groupby("env", sort=False) if SBX not in set(one.algorithm)]
        if without:
            parts.append(f"{SBX} was not measured in {', '.join(without)}: it was not installed. {install_command('speed')}")
        parts += time_table(rows)
    return parts


def time_table(rows: pd.DataFrame) -> list[str]:
    """Split the time of a sample: what the bare loop takes for a step, what a rollout takes besides, and the update."""
    raw = rows[rows.algorithm == RAW_LOOP].set_index("env").rollout_median
    cells = []
    for row in rows[rows.update_median.notna() & rows.env.isin(raw.index)].to_dict("records"):
        step, rollout, update = (1e6 / value for value in (raw[row["env"]], row["rollout_median"], row["update_median"]))
        parts = (step, rollout - step, update, rollout + update)
        cells.append([*(row[name] for name in ("env", "algorithm", *_GROUPS)), *(f"{part:,.1f}" for part in parts)])
    return [
        "### Where the time goes",
        "Microseconds a sample, from the medians above: a step of the env as in the bare loop, what a rollout takes besides "
        "(siblings skip wrappers that only check, which the loop does not), and the update with all its epochs.",
        table(["env", "algorithm", "N", "K", "env.step", "rollout besides", "update", "together"], cells),
    ]


def save_page(folder: Path) -> None:
    """Save ``speed.md`` and its picture, of all sections that were measured."""
    parts = [INTRODUCTION]
    for section in SECTIONS.values():
        rows = section.results(folder).frame
        if len(rows):
            parts += section_text(section, rows)
            if section.name == "speed":
                save_speed(folder / "speed.png", rows[rows.algorithm != RAW_LOOP])
                parts.append("![Algorithms](speed.png)")
    write_text(folder / "speed.md", "\n\n".join(parts) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    folder = Path("speed_benchmark")
    parser.add_argument("--output", type=Path, default=folder, help="folder for speed.md and CSVs (default: %(default)s)")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure (default: all)"
    )
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS), help="in which envs (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, the numbers mean nothing")
    parser.add_argument("--report-only", action="store_true", help="write the page of the tables that are there")


def run(options: argparse.Namespace) -> int:
    """Measure, save env by env, and name the page; the exit code is 0."""
    require_modules(["matplotlib", "tqdm", "tabulate"], "speed")
    from tqdm import tqdm

    chosen = [
        (SECTIONS[name], env) for name in options.sections for env in SECTIONS[name].envs if short_name(env) in options.envs
    ]
    if not chosen:
        has = "; ".join(f"{name}: {', '.join(map(short_name, SECTIONS[name].envs))}" for name in options.sections)
        raise CommandError(f"received --envs {' '.join(options.envs)}, needs an env that a chosen section has: {has}")
    for extra, (modules, needed_by) in EXTRAS.items():
        if needed_by & {env for _, env in chosen} and not options.report_only:
            require_modules(modules, extra)
    folder = output_folder(options.output)
    for section in SECTIONS.values():
        section.results(folder)  # what is no table is refused now rather than in half an hour
    th.set_num_threads(1)
    with tqdm(total=len(chosen), unit="env") as bar:
        for section, env in () if options.report_only else chosen:
            measurements: list[Measurement] = []
            bar.set_description(f"{section.name} {short_name(env)}")
            size = (
                TINY
                if options.quick
                else SIZES["images" if cases.is_atari(env) and section.name != "branching" else section.size]
            )
            with nullcontext() if section.name == "workers" else cases.one_core():
                section.measure(env, size, measurements.append)
            settings = {name: str(getattr(size, name)) for name in section.settings}
            section.results(folder).add(section.summarise(measurements, settings))
            save_page(folder)
            bar.update()
    save_page(folder)
    print(f"Saved: {folder / 'speed.md'}, and the tables beside it.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("sb3_hybrid_grpo.benchmark.speed", "python -m sb3_hybrid_grpo.benchmark.speed", sys.argv[1:]))
