"""The pictures of the speed benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_hybrid_grpo.benchmark.report_figures import OUR_COLORS, save
from sb3_hybrid_grpo.benchmark.speed_page import RAW_LOOP, TABLES
from sb3_hybrid_grpo.benchmark.speed_report import Row, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "rollout_to_ppo": "rollout: simulator steps/s × PPO's",
    "rollout_to_raw": "rollout: share of the env.step loop",
    "update_to_ppo": "update: samples/s × PPO's",
    "overall_to_ppo": "rollout and update: samples/s × PPO's",
}
COLORS = {"PPO": "black", "TRPO": "#CC79A7", "SBX PPO": "#999999"}
"""Of all that has no group."""
MARKERS = {"": "s", "1": "o", "64": "^"}
"""By branch horizon K."""
VARIED = {"n_samples": "N, members of a group", "n_envs": "E, envs", "width": "width of both hidden layers"}


def save_plots(folder: Path) -> list[Path]:
    """
    Save a picture of each section that has one and was measured.

    :param folder: The benchmark's folder.
    :return: The files.
    """
    plots = {"speed": save_speed, "scaling": save_scaling}
    paths = []
    for section, plot in plots.items():
        rows = read_rows(folder, TABLES[section])
        if rows:
            paths.append(folder / f"{section}.png")
            plot(paths[-1], rows)
    return paths


def save_speed(path: Path, rows: Sequence[Row]) -> None:
    """
    Save the ratios of all algorithms, env by env.

    :param path: The PNG to write.
    :param rows: Of the section on algorithms.
    """
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(row.labels["env"] for row in rows))
    cases = list(dict.fromkeys(_case(row) for row in rows if row.labels["algorithm"] != RAW_LOOP))
    sizes = sorted({int(row.labels["n_samples"]) for row in rows if row.labels["n_samples"]})
    figure = Figure(figsize=(2.0 + 2.0 * len(envs), 11.0), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for row in rows:
            statistics = row.statistics(name)
            if statistics is not None:
                algorithm, n_samples, horizon = case = _case(row)
                color = OUR_COLORS[sizes.index(int(n_samples)) % len(OUR_COLORS)] if n_samples else COLORS[algorithm]
                x = envs.index(row.labels["env"]) + 0.8 * ((cases.index(case) + 0.5) / len(cases) - 0.5)
                label = f"N = {n_samples}, K = {horizon}" if n_samples else algorithm
                _point(axes, x, statistics, color, MARKERS[horizon], label)
        axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
        axes.set(ylabel=title, ylim=(0.0, None))
        axes.grid(axis="y", alpha=0.3)
    panels[-1].set_xticks(range(len(envs)), [label.rpartition("/")[2] for label in envs])
    handles, labels = panels[1].get_legend_handles_labels()  # PPO is in this one too
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=4, frameon=False)
    save(figure, path)


def save_scaling(path: Path, rows: Sequence[Row]) -> None:
    """
    Save how the time of a sample grows.

    :param path: The PNG to write.
    :param rows: Of the section on scaling, of any number of envs.
    """
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(row.labels["env"] for row in rows))
    kinds = {"rollout": "rollout: µs a simulator step", "update": "update: µs a sample"}
    figure = Figure(figsize=(12.0, 6.5 * len(envs)), layout="constrained")
    grid = figure.subplots(len(kinds) * len(envs), len(VARIED), squeeze=False)
    for number, (env, kind) in enumerate((env, kind) for env in envs for kind in kinds):
        for axes, (varied, title) in zip(grid[number], VARIED.items(), strict=True):
            here = [row for row in rows if row.labels["env"] == env and row.labels["varied"] == varied]
            for algorithm, horizon in dict.fromkeys(_line(row) for row in here):
                line = [row for row in here if _line(row) == (algorithm, horizon)]
                medians = [1e6 / statistics[0] for row in line if (statistics := row.statistics(kind))]
                color = OUR_COLORS[list(MARKERS).index(horizon)] if horizon else COLORS[algorithm]
                label = f"HybridGRPO, K = {horizon}" if horizon else algorithm
                axes.plot(
                    [int(row.labels["value"]) for row in line], medians, color=color, marker=MARKERS[horizon], label=label
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set(xlabel=title, ylabel=kinds[kind], ylim=(0.0, None))
            axes.grid(alpha=0.3)
        grid[number][0].set_title(env)
    grid[0][-1].legend(frameon=False)
    save(figure, path)


def _case(row: Row) -> tuple[str, str, str]:
    return row.labels["algorithm"], row.labels["n_samples"], row.labels["branch_horizon"]


def _line(row: Row) -> tuple[str, str]:
    return row.labels["algorithm"], row.labels["branch_horizon"]


def _point(axes: "Axes", x: float, statistics: tuple[float, float, float], color: str, marker: str, label: str) -> None:
    middle, lowest, highest = statistics
    spread = [[middle - lowest], [highest - middle]]
    axes.errorbar([x], [middle], yerr=spread, color=color, marker=marker, markersize=5, linewidth=1, linestyle="", label=label)
