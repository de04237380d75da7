"""What the gradient-variance command measured, as a CSV, a Markdown page and a plot."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sb3_hybrid_grpo.benchmark.gradient_statistics import Comparison, Interval
from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.cli import replacing, versions, write_text

ADVANTAGES = ("plain", "normalised")
CSV, PAGE, PLOT, SETTINGS = "gradient_variance.csv", "README.md", "gradient_variance.png", "gradient_variance.json"
# Beyond these ratios the plot has an arrow.
LOWEST, HIGHEST = 0.02, 20.0
# What the page does not tell from more.
LARGE = 100

EXPLANATION = f"""
How much the policy gradient of one rollout varies, and what it is on average. All estimators share one frozen policy and
critic, trained by SB3's PPO, and the number of simulator steps in a rollout, siblings included. Ratios are to PPO's gradient,
measured in more rollouts; the row "PPO" holds it against itself. Intervals are 95 %, by bootstrap over independent rollouts.

![Variance of the policy gradient]({PLOT})

- **variance**: trace of the gradient's covariance. The paper's and GRPO's gradients have other units: theirs is left out.
- **noise**: the same, with the gradient scaled first so that its expected component along PPO's expected gradient is as long
  as that. Free of units; 0.5: half as many rollouts make the same progress with the same noise. "∞": no progress.
- **noise, as trained**: with advantages normalised over the rollout, as training normalises them in each minibatch.
- **off PPO**: length of (expected gradient − PPO's expected gradient) over that of PPO's. Its square is estimated free of the
  noise of both means; where that is below zero, so that no difference was seen, the root has a minus sign.
- **cosine**: between the two expected gradients, free of their noise; by chance it may pass 1 a little.
- **β**, **removed**: mean share of the group baseline, and of the advantages' variance that it took off.

PPO's expected gradient is no ground truth: it rests on the critic too. K is the branch horizon. "own trace": at forks, the
executed member's trace goes on with its own advantage, not with the mean of its group; no option of HybridGRPO.
"""


class Row(NamedTuple):
    """
    One estimator on one policy.

    :param env: The env's id.
    :param stage: When in the training the policy was frozen.
    :param trained_steps: Simulator steps that it had been updated with.
    :param estimator: Name of the estimator.
    :param advantages: One of ``ADVANTAGES``.
    :param rollouts: Independent rollouts.
    :param simulator_steps: Simulator steps of each.
    :param comparison: With the reference.
    :param same_units: Whether the gradient has PPO's units.
    :param beta: Mean share of the group baseline; NaN where there is none.
    :param variance_removed: Mean share of the advantages' variance that it took off; NaN where there is none.
    """

    env: str
    stage: str
    trained_steps: int
    estimator: str
    advantages: str
    rollouts: int
    simulator_steps: int
    comparison: Comparison
    same_units: bool
    beta: float
    variance_removed: float

    @property
    def relative_bias(self) -> Interval:
        """Distance from the reference's expected gradient, relative to its length; negative for a negative square."""
        return Interval(*(math.copysign(math.sqrt(abs(square)), square) for square in self.comparison.squared_bias))

    def cells(self) -> dict[str, str | int]:
        """
        Flatten the row.

        :return: Cells by column; empty where there is nothing to tell.
        """
        cells: dict[str, str | int] = {name: getattr(self, name) for name in self._fields[:7]}
        numbers = {"trace": self.comparison.trace, "squared_norm": self.comparison.squared_norm}
        own_units = self.same_units and self.advantages == "plain"
        intervals = {
            "trace_ratio": self.comparison.trace_ratio if self.same_units or self.advantages == "normalised" else None,
            "noise_ratio": self.comparison.noise_ratio,
            "relative_bias": self.relative_bias if own_units else None,
        }
        for name, interval in intervals.items():
            for suffix, number in zip(("", "_low", "_high"), interval or [math.nan] * 3, strict=True):
                numbers[name + suffix] = number
        numbers |= {"cosine": self.comparison.cosine, "beta": self.beta, "variance_removed": self.variance_removed}
        return cells | {name: "" if math.isnan(number) else f"{number:.4g}" for name, number in numbers.items()}


def csv_table(rows: Sequence[Row]) -> str:
    """
    Write the table for programs.

    :param rows: At least one.
    :return: CSV.
    """
    stream = io.StringIO()
    lines = [row.cells() for row in rows]
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def page(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """
    Write the page for people.

    :param rows: All rows, policy by policy, each plain row followed by its normalised one.
    :param settings: What all rows share.
    :return: Markdown.
    """
    header = ("estimator", "variance", "noise", "noise, as trained", "off PPO", "cosine", "β", "removed")
    lines = ["# Variance of the policy gradient", EXPLANATION]
    policy = None
    for plain, normalised in zip(rows[::2], rows[1::2], strict=True):
        if policy != (plain.env, plain.stage):
            policy = (plain.env, plain.stage)
            lines += [f"\n## {plain.env}, {plain.stage} of the training ({plain.trained_steps:,} simulator steps)\n"]
            lines += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        cells = [plain.estimator, _shown(plain.comparison.trace_ratio) if plain.same_units else ""]
        cells += [_shown(row.comparison.noise_ratio) for row in (plain, normalised)]
        cells += [_shown(plain.relative_bias) if plain.same_units else ""]
        cells += [_number(number) for number in (plain.comparison.cosine, plain.beta, plain.variance_removed)]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        f"\n{rows[0].rollouts} rollouts each and {settings['reference_rollouts']} for the reference, "
        f"{rows[0].simulator_steps:,} simulator steps a rollout. Settings, versions and machine: [`{SETTINGS}`]({SETTINGS}); "
        f"all numbers: [`{CSV}`]({CSV}).\n"
    )
    return "\n".join(lines)


def save_plot(path: Path, rows: Sequence[Row]) -> None:
    """
    Save the ratios of all estimators, a panel for each policy.

    :param path: The PNG to write.
    :param rows: All rows; the plain ones are drawn.
    """
    # The object interface, not pyplot: no global state, and no display is needed.
    from matplotlib.figure import Figure

    plain = [row for row in rows if row.advantages == "plain"]
    envs, stages = list(dict.fromkeys(row.env for row in plain)), list(dict.fromkeys(row.stage for row in plain))
    names = list(dict.fromkeys(row.estimator for row in plain))
    figure = Figure(figsize=(2.0 + 3.4 * len(stages), 1.2 + 0.27 * len(names) * len(envs)), layout="constrained")
    panels = figure.subplots(len(envs), len(stages), sharex=True, sharey=True, squeeze=False)
    for line, env in enumerate(envs):
        for column, stage in enumerate(stages):
            axes = panels[line][column]
            shown = [row for row in plain if (row.env, row.stage) == (env, stage)]
            _draw(axes, [(names.index(row.estimator), row.comparison.trace_ratio) for row in shown if row.same_units], True)
            _draw(axes, [(names.index(row.estimator), row.comparison.noise_ratio) for row in shown], False)
            axes.axvline(1.0, color="tab:gray", linewidth=1)
            axes.grid(axis="x", alpha=0.3)
            if shown:
                axes.set_title(f"{env.rpartition('/')[2]}, {stage}\n({shown[0].trained_steps:,} steps)", fontsize=9)
    first = panels[0][0]
    first.set(xscale="log", xlim=(LOWEST, HIGHEST), xticks=(0.1, 1, 10), ylim=(len(names) - 0.5, -0.5))
    first.set_yticks(range(len(names)), names)
    for axes in panels.flat:
        axes.tick_params(labelsize=8)
    first.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.supxlabel("ratio to PPO at equal simulator steps, 95 % intervals (log axis; arrow: beyond it)", fontsize=9)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_report(folder: Path, rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """
    Save everything, each file in one go.

    :param folder: An existing folder.
    :param rows: All rows so far.
    :param settings: What all rows share, for JSON.
    """
    described = {**settings, "versions": versions(), "machine": machine()}
    write_text(folder / SETTINGS, json.dumps(described, indent=2) + "\n")
    write_text(folder / CSV, csv_table(rows))
    save_plot(folder / PLOT, rows)
    write_text(folder / PAGE, page(rows, settings))


def _draw(axes: Any, points: list[tuple[int, Interval]], variance: bool) -> None:
    """Intervals of one kind, a little above or below the line of their estimator."""
    label, colour, offset = ("variance", "tab:blue", -0.16) if variance else ("noise per progress", "tab:orange", 0.16)
    for number, (place, interval) in enumerate(points):
        value, low, high = (min(max(end, LOWEST), HIGHEST) for end in interval)
        marker = "<" if interval.value < LOWEST else ">" if interval.value > HIGHEST else "s" if variance else "o"
        axes.plot([low, high], [place + offset] * 2, color=colour, linewidth=1.5)
        once = {"label": label} if number == 0 else {}
        axes.plot([value], [place + offset], marker=marker, markersize=4, linestyle="", color=colour, clip_on=False, **once)


def _shown(interval: Interval) -> str:
    return f"{_number(interval.value)} ({_number(interval.low)}…{_number(interval.high)})"


def _number(number: float) -> str:
    if math.isnan(number):
        return ""
    if abs(number) >= LARGE:
        return "∞" if math.isinf(number) else f"> {LARGE}"
    return f"{number:.2f}".replace("-", "−")
