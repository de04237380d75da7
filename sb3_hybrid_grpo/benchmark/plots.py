"""The figures of all benchmarks, readable at a width of 600 pixels, in Okabe and Ito's colours for the colour-blind."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no global state, and no display is needed

from sb3_hybrid_grpo.benchmark.statistics import Axis, EnvResults, Profiles, Runs, bootstrap, interquartile_means
from sb3_hybrid_grpo.model_files import replacing

AXES: dict[Axis, str] = {
    "simulator_steps": "simulator steps",
    "executed_steps": "executed steps (simulator steps without siblings')",
    "wall_seconds": "training time in seconds",
}
NAMES = {"ppo": "PPO", "trpo": "TRPO", "hybrid": "HybridGRPO", "paper": "the paper's", "grpo": "GRPO"}
NAMES["hybrid_grpo"] = NAMES["hybrid"]  # in the Zoo
BLACK = "#000000"
FIXED_COLORS = {"ppo": (BLACK,), "trpo": ("#CC79A7",), "paper": ("#E69F00",), "grpo": ("#999999",)}
OUR_COLORS = ("#0072B2", "#009E73", "#D55E00", "#56B4E9")
LINES, MOST_CURVES = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2))), 6
UNDER_WAY = 0.1  # after this share of the steps, every rising curve is within the frame
Kinds = dict[str, tuple[str, ...]]
Style = tuple[str, Any]  # colour and dashes of an algorithm's line, the same in all figures of a page


def label_of(algorithm: str) -> str:
    """A readable name for an algorithm: ``hybrid,branch_horizon:64`` is ``HybridGRPO (K = 64)``."""
    family, _, arguments = algorithm.partition(",")
    parts = arguments.replace("branch_horizon:auto", "").replace("branch_horizon", "K").strip(",")
    name = NAMES.get(family, family)
    return f"{name} ({parts.replace(':', ' = ').replace(',', ', ')})" if parts else name


def styles_of(algorithms: Iterable[str]) -> dict[str, Style]:
    """Give every algorithm its own line style; baselines always have the same."""
    styles: dict[str, Style] = {}
    taken: dict[tuple[str, ...], int] = {}
    for algorithm in sorted(set(algorithms), key=lambda name: (label_of(name) != "HybridGRPO", name)):
        colors = FIXED_COLORS.get(algorithm.partition(",")[0], OUR_COLORS)
        number = taken.get(colors, 0)
        taken[colors] = number + 1
        styles[algorithm] = colors[number % len(colors)], LINES[number // len(colors) % len(LINES)]
    return styles


def new_panels(count: int, width: float, height: float, columns: int = 3, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with ``count`` panels, sizes in inches, ``columns`` in a row; ``shared`` are ``sharex`` and ``sharey``."""
    columns = math.ceil(count / math.ceil(count / columns))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * rows), layout="constrained", dpi=150)
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def save(figure: Figure, path: Path) -> None:
    """Save a figure as a PNG, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def prepare(axes: Axes, xlabel: str) -> None:
    """Format a panel with steps on the x-axis."""
    axes.set_xlabel(xlabel)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    for one in (axes.xaxis, axes.yaxis):
        one.set_major_formatter(lambda value, _: f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def frame(axes: Axes, results: EnvResults, variants: Iterable[Runs]) -> None:
    """Begin the y-axis at the lowest score after 10 % of the training, over the curves that end above the untrained policy."""
    shown, seen = list(variants), []
    for variant in [one for one in shown if one.final.value > results.untrained] or shown:
        grid, scores = variant.on_common_grid()
        seen.append(interquartile_means(scores)[grid >= UNDER_WAY * grid[-1]])
    low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + 2 * margin)  # above the curves is text


def mark_target(axes: Axes, results: EnvResults) -> None:
    """Mark PPO's final score, and how much earlier than the first PPO, at any settings, HybridGRPO reaches it."""
    target, ours = results.best_final("ppo"), results.best_training("ours")
    if target is None:
        return
    score, text = target.final.value, "dotted: PPO's final score"
    axes.axhline(score, color=BLACK, linestyle=":", linewidth=1)
    first, own = results.first_ppo_to_reach(score), ours.steps_to_reach(score) if ours else None
    if ours is not None and first is not None and own is not None and own < first:
        axes.annotate("", (own, score), (first, score), arrowprops={"arrowstyle": "->", "linewidth": 2}, zorder=5)
        text += f", {first / own:.1f} × earlier by {NAMES[ours.algorithm.partition(',')[0]]}"
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    where: dict[str, Any] = {"xycoords": ("axes fraction", "axes fraction"), "ha": "right", "va": "top"}
    axes.annotate(text, (0.99, 0.99), zorder=5, bbox=box, **where)


def save_curves(path: Path, results: EnvResults, styles: dict[str, Style], axes_shown: Sequence[Axis]) -> None:
    """Save learning curves of PPO and the algorithms with the highest means over training, each at its best settings."""
    kept = sorted(results.best, key=lambda name: (name != "ppo", -results.best[name].training.value))[:MOST_CURVES]
    shown = {name: variant for name, variant in results.best.items() if name in kept}
    columns = 1 if max(map(len, map(label_of, shown))) > 30 else 2
    figure, panels = new_panels(len(axes_shown), 6.4, 4.0 + 0.2 * len(shown) / columns, sharey=True)
    for panel, axis in zip(panels, axes_shown, strict=True):
        for algorithm, variant in shown.items():
            (color, line), (grid, scores) = styles[algorithm], variant.on_common_grid(axis)
            below = "" if variant.final.value > results.untrained else ", below the frame"
            means, label = interquartile_means(scores), label_of(algorithm) + below
            panel.plot(grid, means, color=color, linestyle=line, linewidth=2, zorder=3 + (label == "HybridGRPO"), label=label)
            if len(scores) > 1 and len(grid):
                panel.fill_between(grid, *bootstrap(scores), color=color, alpha=0.15, linewidth=0)
        prepare(panel, AXES[axis])
        if axis == "simulator_steps":
            mark_target(panel, results)
    frame(panels[0], results, shown.values())
    panels[0].set(ylabel="mean reward of an evaluation")
    few = f": {len(shown)} of {len(results.best)}" if len(shown) < len(results.best) else ""
    figure.suptitle(results.env.rpartition("/")[2] + few)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    save(figure, path)


def save_settings(path: Path, results: EnvResults, styles: dict[str, Style]) -> None:
    """Save learning curves of all settings, a panel per algorithm, with the best settings as a solid line."""
    height = 3.6 + 0.22 * max(len(results.settings_of(algorithm)) for algorithm in results.best)
    figure, panels = new_panels(len(results.best), 4.2, height, sharey=True)
    for (algorithm, best), axes in zip(results.best.items(), panels, strict=True):
        variants = results.settings_of(algorithm)
        shared = set.intersection(*(set(variant.settings.split()) for variant in variants))
        others = iter("--s :o -.^ --^ :s -.o".split() * len(variants))
        for variant in variants:
            grid, scores = variant.on_common_grid()
            look = "-" if variant is best else next(others)
            label = " ".join(word for word in variant.settings.split() if word not in shared) or "the only settings"
            axes.plot(grid, interquartile_means(scores), look, color=styles[algorithm][0], markersize=4, label=label)
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
        colors={names[one]: styles[one][0] for one in names},
        linestyles={names[one]: styles[one][1] for one in names},
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


def save_intervals(path: Path, rows: pd.DataFrame, kinds: Kinds, xlabel: str, columns: int, limits: Any = None) -> None:
    """
    Save ratios with intervals, a panel for every value of ``rows.panel``. ``kinds`` names the columns of ratio, low end and
    high end. With limits, the axis is logarithmic, and arrows stand for values beyond the limits.
    """
    names, cases = (list(dict.fromkeys(rows[column])) for column in ("panel", "case"))
    figure, panels = new_panels(len(names), 3.4, 0.8 + 0.27 * len(cases), columns, sharex=True, sharey=True)
    lowest, highest = limits or (-np.inf, np.inf)
    for name, axes in zip(names, panels, strict=True):
        for kind, color, marker, offset in zip(kinds, OUR_COLORS, "so^", np.linspace(-0.2, 0.2, len(kinds)), strict=False):
            here = rows[(rows.panel == name) & rows[kinds[kind][0]].notna()]
            places = np.array([cases.index(case) + offset for case in here.case])
            value, low, high = here[list(kinds[kind])].clip(lowest, highest).to_numpy().T
            axes.hlines(places, low, high, color=color, linewidth=1.5)
            axes.plot(value, places, marker, color=color, markersize=4, label=kind)
            for end, arrow in ((lowest, "<"), (highest, ">")):
                if (value == end).any():
                    axes.plot(value[value == end], places[value == end], arrow, color=color, clip_on=False)
        axes.axvline(1.0, color=BLACK, linewidth=1, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].set(ylim=(len(cases) - 0.5, -0.5), xscale="log" if limits else "linear", xlim=limits or (0.0, None))
    panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.supxlabel(xlabel, fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds), frameon=False)
    save(figure, path)
