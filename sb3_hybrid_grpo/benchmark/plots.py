"""The figures of all benchmarks. At 600 pixels they can still be read; colours are Okabe and Ito's, for the colour-blind."""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_hybrid_grpo.benchmark.statistics import Axis, EnvResults, Profiles, Runs, bootstrap, interquartile_means
from sb3_hybrid_grpo.commands.cli import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES: dict[Axis, str] = {
    "simulator_steps": "simulator steps",
    "executed_steps": "executed steps (simulator steps without siblings')",
    "wall_seconds": "training time in seconds",
}
NAMES = {
    "ppo": "PPO",
    "trpo": "TRPO",
    "hybrid": "HybridGRPO",
    "hybrid_grpo": "HybridGRPO",
    "paper": "the paper's",
    "grpo": "GRPO",
}
BLACK = "#000000"
FIXED_COLORS = {"ppo": (BLACK,), "trpo": ("#CC79A7",), "paper": ("#E69F00",), "grpo": ("#999999",)}
OUR_COLORS = ("#0072B2", "#009E73", "#D55E00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
MARKERS = ("", "o", "s", "^")
# From this share of the steps on, every curve that rises is within the frame.
UNDER_WAY = 0.1
# Beyond these ratios the plot of gradients has an arrow.
LOWEST, HIGHEST = 0.02, 20.0


class Style(NamedTuple):
    """Colour and dashes of an algorithm's line, the same in all figures of a page."""

    color: str
    line: str


def label_of(algorithm: str) -> str:
    """Name an algorithm for people: ``hybrid,branch_horizon:64`` is ``HybridGRPO (K = 64)``."""
    family, _, arguments = algorithm.partition(",")
    parts = arguments.replace("branch_horizon:auto", "").replace("branch_horizon", "K").strip(",")
    name = NAMES.get(family, family)
    return f"{name} ({parts.replace(':', ' = ').replace(',', ', ')})" if parts else name


def styles_of(algorithms: Iterable[str]) -> dict[str, Style]:
    """Give every algorithm a look of its own; baselines always have the same."""
    styles: dict[str, Style] = {}
    taken: dict[tuple[str, ...], int] = {}
    for algorithm in sorted(set(algorithms), key=lambda name: (label_of(name) != "HybridGRPO", name)):
        colors = FIXED_COLORS.get(algorithm.partition(",")[0], OUR_COLORS)
        number = taken.get(colors, 0)
        taken[colors] = number + 1
        styles[algorithm] = Style(colors[number % len(colors)], LINES[number // len(colors) % len(LINES)])
    return styles


def new_panels(count: int, width: float, height: float, columns: int = 3, **shared: Any) -> tuple["Figure", list["Axes"]]:
    """
    Make a figure with ``count`` panels of some inches, ``columns`` in a row; ``shared`` are ``sharex`` and ``sharey``. Without
    pyplot: no global state, and no display is needed.
    """
    from matplotlib.figure import Figure

    columns = math.ceil(count / math.ceil(count / columns))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * rows), layout="constrained", dpi=150)
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def save(figure: "Figure", path: Path) -> None:
    """Save a figure as a PNG, in one go."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def prepare(axes: "Axes", xlabel: str) -> None:
    """Set what all panels with steps on the x-axis share."""
    axes.set_xlabel(xlabel)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    for one in (axes.xaxis, axes.yaxis):
        one.set_major_formatter(lambda value, _: f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(axes: "Axes", variant: Runs, axis: Axis, style: Style, label: str) -> None:
    """Draw the interquartile mean over seeds, and its 95 % interval as a band."""
    grid, scores = variant.on_common_grid(axis)
    axes.plot(grid, interquartile_means(scores), color=style.color, linestyle=style.line, linewidth=2, zorder=3, label=label)
    if len(scores) > 1 and len(grid):
        axes.fill_between(grid, *bootstrap(scores), color=style.color, alpha=0.15, linewidth=0)


def frame(axes: "Axes", results: EnvResults, variants: Iterable[Runs]) -> None:
    """
    Let the y-axis begin with the lowest score once training is under way. The untrained policy, and what ends no higher than
    it, may be so far below that nothing else could be told apart.
    """
    shown = list(variants)
    seen = []
    for variant in [one for one in shown if one.final.value > results.untrained] or shown:
        grid, scores = variant.on_common_grid()
        seen.append(interquartile_means(scores)[grid >= UNDER_WAY * grid[-1]])
    low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + 2 * margin)  # above the curves is text


def mark_target(axes: "Axes", results: EnvResults) -> None:
    """Mark PPO's final score, and how much earlier HybridGRPO has it than the first PPO, at whatever settings."""
    target, ours = results.best_final("ppo"), results.best_training("ours")
    if target is None:
        return
    score, text = target.final.value, "dotted: PPO's final score"
    axes.axhline(score, color=BLACK, linestyle=":", linewidth=1)
    first, own = results.first_ppo_to_reach(score), ours.steps_to_reach(score) if ours else None
    if first is not None and own is not None and own < first:
        axes.annotate("", (own, score), (first, score), arrowprops={"arrowstyle": "->", "linewidth": 2}, zorder=5)
        text = f"{label_of(ours.algorithm) if ours else ''} has PPO's final score (dotted) {first / own:.1f} × earlier"
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    where: dict[str, Any] = {"xycoords": ("axes fraction", "axes fraction"), "ha": "right", "va": "top"}
    axes.annotate(text, (0.99, 0.99), zorder=5, bbox=box, **where)


def save_curves(path: Path, results: EnvResults, styles: dict[str, Style], axes_shown: Sequence[Axis]) -> None:
    """Save learning curves, each algorithm at its best settings."""
    figure, panels = new_panels(len(axes_shown), 6.4, 4.0 + 0.1 * len(results.best), sharey=True)
    for panel, axis in zip(panels, axes_shown, strict=True):
        for algorithm, variant in results.best.items():
            below = "" if variant.final.value > results.untrained else ", below the frame"
            draw_curve(panel, variant, axis, styles[algorithm], label_of(algorithm) + below)
        prepare(panel, AXES[axis])
        if axis == "simulator_steps":
            mark_target(panel, results)
    frame(panels[0], results, results.best.values())
    panels[0].set(ylabel="mean reward of an evaluation")
    figure.suptitle(results.env.rpartition("/")[2])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def what_differs(variant: Runs, variants: Sequence[Runs]) -> str:
    """The part of a variant's settings that not all variants of its algorithm have."""
    known = [set(one.settings.split()) for one in variants]
    words = [word for word in variant.settings.split() if not all(word in one for one in known)]
    return " ".join(words) or "the only settings"


def save_settings(path: Path, results: EnvResults, styles: dict[str, Style]) -> None:
    """Save learning curves of all settings, a panel per algorithm: the best ones were chosen from these."""
    height = 3.6 + 0.22 * max(len(results.settings_of(algorithm)) for algorithm in results.best)
    figure, panels = new_panels(len(results.best), 4.2, height, sharey=True)
    for (algorithm, best), axes in zip(results.best.items(), panels, strict=True):
        variants = results.settings_of(algorithm)
        looks = cycle(product(MARKERS, LINES[1:]))
        for variant in variants:
            grid, scores = variant.on_common_grid()
            marker, line = ("", LINES[0]) if variant is best else next(looks)
            label = what_differs(variant, variants) + (" (best)" if variant is best else "")
            look: dict[str, Any] = {"color": styles[algorithm].color, "linestyle": line, "marker": marker, "markersize": 4}
            axes.plot(grid, interquartile_means(scores), linewidth=2.6 if variant is best else 1.4, label=label, **look)
        prepare(axes, AXES["simulator_steps"])
        axes.set_title(label_of(algorithm))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    frame(panels[0], results, results.variants)
    figure.supylabel("mean reward of an evaluation", fontsize="medium")
    figure.suptitle(f"{results.env.rpartition('/')[2]}: all settings, interquartile means over seeds")
    save(figure, path)


def save_profiles(path: Path, profiles: Profiles, styles: dict[str, Style]) -> None:
    """Save performance profiles."""
    from rliable.plot_utils import plot_performance_profiles

    figure, (axes,) = new_panels(1, 6.4, 4.4)
    names = {algorithm: label_of(algorithm) for algorithm in profiles.shares}
    plot_performance_profiles(
        {names[one]: shares for one, shares in profiles.shares.items()},
        profiles.thresholds,
        performance_profile_cis={names[one]: bounds for one, bounds in profiles.bounds.items()},
        colors={names[one]: styles[one].color for one in names},
        linestyles={names[one]: styles[one].line for one in names},
        ax=axes,
        xlabel="final score: 0 is the untrained policy, 1 the best PPO",
        ylabel="share of runs above that score",
        **{"labelsize": "medium", "ticklabelsize": "medium", "legend": True, "legendsize": "medium"},
    )
    axes.axvline(1.0, color=BLACK, linestyle=":", linewidth=1)
    axes.set_title(f"{len(profiles.envs)} envs, {profiles.seeds} {'seed' if profiles.seeds == 1 else 'seeds'} each")
    save(figure, path)


def save_zoo(path: Path, curves: pd.DataFrame) -> None:
    """Save the Zoo's learning curves, a panel per env: a thin line per seed, a thick one for their mean."""
    envs = list(dict.fromkeys(curves.env))
    figure, panels = new_panels(len(envs), 4.2, 3.2)
    for env, axes in zip(envs, panels, strict=True):
        for algo, color in (("ppo", BLACK), ("hybrid_grpo", OUR_COLORS[0])):
            here = curves[(curves.env == env) & (curves.algo == algo)]
            for _, run in here.groupby("seed"):
                axes.plot(run.simulator_steps, run.mean_reward, color=color, alpha=0.25, linewidth=0.8)
            mean = here.groupby(here.groupby("seed").cumcount())[["simulator_steps", "mean_reward"]].mean()
            if len(mean):
                axes.plot(mean.simulator_steps, mean.mean_reward, color=color, linewidth=2, label=NAMES[algo])
        prepare(axes, AXES["simulator_steps"])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
        axes.set(title=env, ylabel="mean reward")
    panels[0].legend(frameon=False)
    save(figure, path)


def save_gradients(path: Path, rows: pd.DataFrame) -> None:
    """Save how much gradients vary, a panel for each policy."""
    envs, stages, names = (list(dict.fromkeys(rows[column])) for column in ("env", "stage", "estimator"))
    figure, panels = new_panels(len(envs) * len(stages), 3.6, 0.6 + 0.27 * len(names), len(stages), sharex=True, sharey=True)
    kinds = (
        ("trace_ratio", "variance", "s", OUR_COLORS[0], -0.16),
        ("noise_ratio", "noise per progress", "o", OUR_COLORS[1], 0.16),
    )
    for (env, stage), axes in zip(product(envs, stages), panels, strict=True):
        shown = rows[(rows.env == env) & (rows.stage == stage)]
        for column, label, marker, color, offset in kinds:
            for row in shown[shown[column].notna()].to_dict("records"):
                place = names.index(row["estimator"]) + offset
                ends = np.clip([row[f"{column}_low"], row[f"{column}_high"]], LOWEST, HIGHEST)
                axes.plot(ends, [place] * 2, color=color, linewidth=1.5)
                value, here = row[column], np.clip(row[column], LOWEST, HIGHEST)
                shape = "<" if value < LOWEST else ">" if value > HIGHEST else marker
                axes.plot([here], [place], marker=shape, markersize=4, linestyle="", color=color, clip_on=False, label=label)
        axes.axvline(1.0, color="tab:gray", linewidth=1)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=9)
        if len(shown):
            axes.set_title(f"{env.rpartition('/')[2]}, {stage}\n({shown.trained_steps.iloc[0]:,} steps)", fontsize=10)
    first = panels[0]
    first.set(xscale="log", xlim=(LOWEST, HIGHEST), xticks=(0.1, 1, 10), ylim=(len(names) - 0.5, -0.5))
    first.set_yticks(range(len(names)), names)
    first.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.supxlabel("ratio to PPO at equal simulator steps, 95 % intervals (log axis; arrow: beyond it)", fontsize=10)
    unique = dict(zip(*reversed(first.get_legend_handles_labels()), strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=2, frameon=False)
    save(figure, path)


def save_speed(path: Path, rows: pd.DataFrame) -> None:
    """Save the speeds of all algorithms beside PPO's, a panel for each env."""
    kinds = {"rollout_to_ppo": "rollout", "update_to_ppo": "update", "overall_to_ppo": "both"}
    labels = [
        f"HybridGRPO N = {row.n_samples}, K = {row.branch_horizon}" if row.n_samples else row.algorithm
        for row in rows.itertuples()
    ]
    rows = rows.assign(label=labels)[rows.algorithm != "PPO"]
    envs, names = list(dict.fromkeys(rows.env)), list(dict.fromkeys(rows.label))
    figure, panels = new_panels(len(envs), 3.0, 1.2 + 0.26 * len(names), 4, sharex=True, sharey=True)
    for env, axes in zip(envs, panels, strict=True):
        here = rows[rows.env == env]
        places = np.array([names.index(label) for label in here.label])
        for (name, label), color, marker, offset in zip(kinds.items(), OUR_COLORS, "os^", (-0.2, 0.0, 0.2), strict=False):
            middle, low, high = (here[f"{name}_{statistic}"].to_numpy() for statistic in ("median", "min", "max"))
            look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linestyle": "", "elinewidth": 1}
            axes.errorbar(middle, places + offset, xerr=[middle - low, high - middle], label=label, **look)
        axes.axvline(1.0, color=BLACK, linewidth=1, linestyle=":")
        axes.set_title(env.rpartition("/")[2], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set(xlim=(0.0, None), ylim=(len(names) - 0.5, -0.5))
    figure.supxlabel("times as fast as PPO", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)
