"""The figures of a comparison's report."""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sb3_hybrid_grpo.benchmark.profiles import Profiles
from sb3_hybrid_grpo.benchmark.statistics import (
    Axis,
    EnvResults,
    Runs,
    bootstrap,
    interquartile_means,
    on_common_grid,
    positions,
    rewards,
)
from sb3_hybrid_grpo.cli import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES: dict[Axis, str] = {
    "simulator_steps": "simulator steps, siblings included",
    "executed_steps": "executed steps, member 0 alone",
    "wall_seconds": "training time in seconds",
}
# Okabe and Ito's colours, which stay apart for the colour-blind.
BASELINE_COLORS = {"ppo": ("black",), "trpo": ("#CC79A7",)}
OUR_COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("", "o", "s", "^")
PANELS_PER_ROW = 3
# Inches beside a panel: the last number of one axis and the first of the next stay apart.
PADDING = 0.12
# From this share of the steps on, every curve that rises is within the frame.
UNDER_WAY = 0.1
DPI = 110


class Style(NamedTuple):
    """
    How an algorithm's line looks, the same in all figures.

    :param color: Its colour.
    :param line: Its dashes.
    """

    color: str
    line: str


def styles_of(algorithms: Iterable[str]) -> dict[str, Style]:
    """
    Give every algorithm a look of its own.

    :param algorithms: All that any figure shows.
    :return: Style by algorithm.
    """
    styles: dict[str, Style] = {}
    taken: dict[tuple[str, ...], int] = {}
    for algorithm in sorted(set(algorithms)):
        colors = BASELINE_COLORS.get(algorithm.partition(",")[0], OUR_COLORS)
        number = taken.get(colors, 0)
        taken[colors] = number + 1
        styles[algorithm] = Style(colors[number % len(colors)], LINES[number // len(colors) % len(LINES)])
    return styles


def label_of(algorithm: str) -> str:
    """
    Name an algorithm for people.

    :param algorithm: As named on the command line.
    :return: The same; baselines in capitals.
    """
    family, comma, arguments = algorithm.partition(",")
    return (family.upper() if family in BASELINE_COLORS else family) + comma + arguments


def number(value: float, _: object = None) -> str:
    """
    Write a tick's number.

    :param value: The number.
    :return: With thousands separators, and decimals only if it has some.
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def save(figure: "Figure", path: Path) -> None:
    """
    Save a figure in one go.

    :param figure: The figure.
    :param path: The PNG to write.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def prepare(axes: "Axes", xlabel: str) -> None:
    """
    Set what all panels share.

    :param axes: The panel.
    :param xlabel: What its x axis counts.
    """
    axes.set_xlabel(xlabel)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(number)
    axes.yaxis.set_major_formatter(number)
    axes.grid(alpha=0.3)


def draw_curve(axes: "Axes", variant: Runs, axis: Axis, style: Style, label: str) -> None:
    """
    Draw a variant: every seed faint, the interquartile mean on top, its 95% interval as a band.

    :param axes: The panel.
    :param variant: The variant.
    :param axis: What the x axis counts.
    :param style: Its look.
    :param label: Its entry in the legend.
    """
    for run in variant.runs:
        axes.plot(positions(run, axis), rewards(run), color=style.color, linewidth=0.7, alpha=0.25)
    grid, scores = on_common_grid(variant.runs, axis)
    axes.plot(grid, interquartile_means(scores), color=style.color, linestyle=style.line, linewidth=2, zorder=3, label=label)
    if len(scores) > 1 and len(grid):
        low, high = bootstrap(scores, interquartile_means)
        axes.fill_between(grid, low, high, color=style.color, alpha=0.15, linewidth=0)


def frame(axes: "Axes", results: EnvResults, variants: Iterable[Runs]) -> None:
    """
    Let the y axis begin with what is lowest once the training is under way: the untrained policy, and what ends no higher
    than it, may be so far below that nothing else could be told apart.

    :param axes: A panel.
    :param results: One env's.
    :param variants: All that the panels show.
    """
    shown = list(variants)
    seen = []
    for variant in [one for one in shown if is_in_frame(one, results)] or shown:
        grid, scores = on_common_grid(variant.runs, "simulator_steps")
        seen.append(interquartile_means(scores)[grid >= UNDER_WAY * grid[-1]])
    low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def is_in_frame(variant: Runs, results: EnvResults) -> bool:
    """
    Say whether a variant learned anything.

    :param variant: The variant.
    :param results: Its env's.
    :return: Whether it ends above the untrained policy.
    """
    return variant.final.value > results.untrained


def save_curves(path: Path, results: EnvResults, styles: dict[str, Style]) -> None:
    """
    Save learning curves against simulator steps, executed steps and time: each algorithm at its best settings.

    :param path: The PNG to write.
    :param results: One env's.
    :param styles: Every algorithm's look.
    """
    from matplotlib.figure import Figure

    target = results.best_final("ppo")
    figure = Figure(figsize=(14.0, 4.6 + 0.24 * len(results.best)))
    figure.set_layout_engine("constrained", w_pad=PADDING)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axes, (axis, xlabel) in zip(panels, AXES.items(), strict=True):
        for algorithm, variant in results.best.items():
            below = "" if is_in_frame(variant, results) else ", below the frame"
            draw_curve(axes, variant, axis, styles[algorithm], f"{label_of(algorithm)} ({variant.settings}){below}")
        if target is not None:
            axes.axhline(target.final.value, color="black", linestyle=":", linewidth=1, label="best final score of PPO")
        prepare(axes, xlabel)
    frame(panels[0], results, results.best.values())
    panels[0].set_ylabel("mean reward of an evaluation")
    figure.suptitle(f"{results.env}: each algorithm at its best settings")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    save(figure, path)


def what_differs(variant: Runs, variants: Sequence[Runs]) -> str:
    """
    Name a variant among those of its algorithm.

    :param variant: The variant.
    :param variants: All of them.
    :return: The part of its settings that not all of them have.
    """
    known = [set(one.settings.split()) for one in variants]
    return (
        " ".join(word for word in variant.settings.split() if not all(word in words for words in known)) or "the only settings"
    )


def save_settings(path: Path, results: EnvResults, styles: dict[str, Style]) -> None:
    """
    Save learning curves of all settings, a panel per algorithm: what the best ones were chosen from.

    :param path: The PNG to write.
    :param results: One env's.
    :param styles: Every algorithm's look.
    """
    from matplotlib.figure import Figure

    rows = math.ceil(len(results.best) / PANELS_PER_ROW)
    columns = math.ceil(len(results.best) / rows)
    height = 3.9 + 0.22 * max(len(results.settings_of(algorithm)) for algorithm in results.best)
    figure = Figure(figsize=(max(4.8 * columns, 6.5), height * rows))
    figure.set_layout_engine("constrained", w_pad=PADDING)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    shown = list(islice(panels, len(results.best)))
    for (algorithm, best), axes in zip(results.best.items(), shown, strict=True):
        variants = results.settings_of(algorithm)
        looks = cycle(product(MARKERS, LINES[1:]))
        for variant in variants:
            grid, scores = on_common_grid(variant.runs, "simulator_steps")
            marker, line = ("", LINES[0]) if variant is best else next(looks)
            axes.plot(
                grid,
                interquartile_means(scores),
                color=styles[algorithm].color,
                linestyle=line,
                marker=marker,
                markersize=4,
                linewidth=2.6 if variant is best else 1.4,
                label=what_differs(variant, variants) + (" (best)" if variant is best else ""),
            )
        prepare(axes, AXES["simulator_steps"])
        axes.set_title(label_of(algorithm))
        # under the panel: over the curves it would hide them
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    frame(shown[0], results, results.variants)
    for axes in panels:  # those that no algorithm took
        axes.set_axis_off()
    figure.supylabel("mean reward of an evaluation", fontsize="medium")
    figure.suptitle(f"{results.env}: all settings, interquartile means over seeds")
    save(figure, path)


def save_profiles(path: Path, profiles: Profiles, styles: dict[str, Style]) -> None:
    """
    Save performance profiles.

    :param path: The PNG to write.
    :param profiles: The profiles.
    :param styles: Every algorithm's look.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for algorithm, shares in profiles.shares.items():
        style = styles[algorithm]
        axes.plot(profiles.thresholds, shares, color=style.color, linestyle=style.line, linewidth=2, label=label_of(algorithm))
        if algorithm in profiles.bounds:
            axes.fill_between(profiles.thresholds, *profiles.bounds[algorithm], color=style.color, alpha=0.15, linewidth=0)
    prepare(axes, "normalised final score: 0 is the untrained policy, 1 the best PPO")
    axes.axvline(1.0, color="black", linestyle=":", linewidth=1)
    axes.set(xlim=(0.0, profiles.thresholds[-1]), ylim=(0.0, 1.02), ylabel="share of runs above that score")
    axes.set_title(f"{len(profiles.envs)} envs, {profiles.seeds} {'seed' if profiles.seeds == 1 else 'seeds'} each")
    axes.legend(loc="lower left", frameon=False)
    save(figure, path)


def save_figures(folder: Path, results: EnvResults, styles: dict[str, Style]) -> list[Path]:
    """
    Save the figures of an env.

    :param folder: An existing folder.
    :param results: The env's results.
    :param styles: Every algorithm's look.
    :return: The files: the curves, and all settings where an algorithm has several.
    """
    paths = [folder / f"{results.name}.png"]
    save_curves(paths[0], results, styles)
    if len(results.variants) > len(results.best):
        paths.append(folder / f"{results.name}-settings.png")
        save_settings(paths[1], results, styles)
    return paths
