"""What :mod:`sb3_hybrid_grpo.benchmark.zoo` found: its files, a table, a picture."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sb3_hybrid_grpo.cli import replacing, write_text

NAMES = {"ppo": "PPO", "hybrid_grpo": "HybridGRPO"}
COLORS = {"ppo": "black", "hybrid_grpo": "#0072B2"}
# Differences beyond it are called more than noise
STANDARD_ERRORS = 2.0

HEAD = """# HybridGRPO and PPO in RL Baselines3 Zoo

Each trained by `hybrid-grpo-zoo train` with its own entry, PPO's from the Zoo, at equal **simulator** steps; then the final
agent played {episodes} episodes, deterministically, with seeds that training did not use. Shown are the mean reward of each
seed's agent, and their mean ± standard error. CPU time is that of one training in one thread, its evaluations included.
*Worse* and *better* are differences of more than {errors:g} standard errors of the difference.

"""
FOOT = """
![learning curves](curves.png)

The Zoo's evaluations during training (5 episodes each): a thin line per seed, a thick one for their mean.

[`scores.csv`](scores.csv), [`curves.csv`](curves.csv) and [`runs.json`](runs.json), which has each run's command,
hyperparameters, versions and machine, were made by

```bash
python -m sb3_hybrid_grpo.benchmark.zoo --output benchmarks/zoo --logs zoo_logs
```

with {made_with}.
"""


@dataclass(frozen=True)
class Score:
    """
    How a run's final agent plays.

    :param env: The env's id.
    :param algo: What ``--algo`` was.
    :param seed: The training's seed.
    :param simulator_steps: Steps of the simulator in training, siblings' included.
    :param executed_steps: Those of member 0 alone.
    :param wall_seconds: Of the training, with its evaluations.
    :param cpu_seconds: Likewise.
    :param mean_reward: Mean undiscounted reward of the episodes.
    :param std_reward: Their standard deviation.
    :param episodes: How many there were.
    """

    env: str
    algo: str
    seed: int
    simulator_steps: int
    executed_steps: int
    wall_seconds: float
    cpu_seconds: float
    mean_reward: float
    std_reward: float
    episodes: int


@dataclass(frozen=True)
class Evaluation:
    """
    A point of a learning curve.

    :param env: The env's id.
    :param algo: What ``--algo`` was.
    :param seed: The training's seed.
    :param simulator_steps: Where.
    :param mean_reward: Mean undiscounted reward there.
    """

    env: str
    algo: str
    seed: int
    simulator_steps: int
    mean_reward: float


Line = TypeVar("Line", Score, Evaluation)


class ZooResults:
    """
    The results of all runs.

    :param folder: An existing folder, for ``scores.csv``, ``curves.csv`` and ``runs.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read()

    def _read(self) -> None:
        self.scores = _lines(self.folder / "scores.csv", Score)
        self.curves = _lines(self.folder / "curves.csv", Evaluation)
        path = self.folder / "runs.json"
        self.runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def done(self) -> set[tuple[str, str, int]]:
        """Algorithm, env and seed of what has been done."""
        return {(score.algo, score.env, score.seed) for score in self.scores}

    def add(self, score: Score, curve: Sequence[Evaluation], made: dict[str, Any]) -> None:
        """
        Add a run. Its score is written last: without it, a run is not done.

        :param score: How it did.
        :param curve: What it was during training.
        :param made: How it was made.
        """
        self._read()
        run = (score.env, score.algo, score.seed)
        others = [line for line in self.curves if (line.env, line.algo, line.seed) != run]
        self.runs["{} {} {}".format(*run)] = made
        write_text(self.folder / "runs.json", json.dumps(self.runs, indent=1) + "\n")
        _write(self.folder / "curves.csv", Evaluation, [*others, *curve])
        _write(self.folder / "scores.csv", Score, [*self.scores, score])
        self._read()

    def of(self, env: str, algo: str) -> list[Score]:
        """
        Find the scores of an algorithm on an env.

        :param env: The env's id.
        :param algo: The algorithm.
        :return: One per seed, in their order.
        """
        return sorted((one for one in self.scores if (one.env, one.algo) == (env, algo)), key=lambda one: one.seed)


def _lines(path: Path, kind: type[Line]) -> list[Line]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        types: dict[str, Any] = {field.name: field.type for field in fields(kind)}
        return [kind(**{name: types[name](text) for name, text in line.items()}) for line in csv.DictReader(file)]


def _write(path: Path, kind: type[Line], lines: Sequence[Line]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(astuple(line) for line in lines)
    write_text(path, text.getvalue())


def standard_error(values: Sequence[float]) -> float:
    """
    Tell how uncertain a mean over seeds is.

    :param values: One per seed.
    :return: The standard error of their mean; NaN for a single one.
    """
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """
    Say whether a difference of means is more than noise.

    :param ours: Scores, one per seed.
    :param theirs: What they are compared with.
    :return: better, worse, or not separated; nothing where a single seed cannot tell.
    """
    if not ours or not theirs:
        return ""
    noise = STANDARD_ERRORS * math.hypot(standard_error(ours), standard_error(theirs))
    difference = float(np.mean(ours) - np.mean(theirs))
    if math.isnan(noise):
        return ""
    if abs(difference) <= noise:
        return "not separated"
    return "better" if difference > 0 else "worse"


def table(results: ZooResults) -> str:
    """
    Write the table.

    :param results: The results.
    :return: Markdown.
    """
    lines = [
        "| env | simulator steps | algorithm | each seed | mean ± s.e. | against PPO | CPU time |",
        "|---|---|---|---|---|---|---|",
    ]
    for env in dict.fromkeys(score.env for score in results.scores):
        theirs = [score.mean_reward for score in results.of(env, "ppo")]
        for algo in NAMES:
            scores = results.of(env, algo)
            if not scores:
                continue
            means = [score.mean_reward for score in scores]
            each = ", ".join(f"{mean:.1f}" for mean in means)
            mean = f"{np.mean(means):.1f} ± {standard_error(means):.1f}"
            against = "" if algo == "ppo" else verdict(means, theirs)
            seconds = np.mean([score.cpu_seconds for score in scores])
            cells = [env, f"{scores[0].simulator_steps:,}", NAMES[algo], each, mean, against, f"{seconds:.0f} s"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def save_curves(path: Path, results: ZooResults) -> None:
    """
    Draw the learning curves.

    :param path: The PNG to write.
    :param results: The results.
    """
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(line.env for line in results.curves))
    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    for place, env in enumerate(envs, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for algo, name in NAMES.items():
            curves = [line for line in results.curves if (line.env, line.algo) == (env, algo)]
            seeds = sorted({line.seed for line in curves})
            drawn = [[(line.simulator_steps, line.mean_reward) for line in curves if line.seed == seed] for seed in seeds]
            for curve in drawn:
                axes.plot(*zip(*curve, strict=True), color=COLORS[algo], alpha=0.25, linewidth=0.8)
            if drawn:
                steps, rewards = np.mean(drawn, axis=0).T
                axes.plot(steps, rewards, color=COLORS[algo], linewidth=2, label=name)
        axes.set(title=env, xlabel="simulator steps", ylabel="mean reward")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def save_report(results: ZooResults) -> None:
    """
    Write ``README.md`` and ``curves.png``.

    :param results: The results, of one run at least.
    """
    if not results.scores:
        return
    save_curves(results.folder / "curves.png", results)
    head = HEAD.format(episodes=results.scores[0].episodes, errors=STANDARD_ERRORS)
    used = (made["made_with"].items() for made in results.runs.values())
    made_with = "; ".join(dict.fromkeys(", ".join(f"{name} {value}" for name, value in one) for one in used))
    write_text(results.folder / "README.md", head + table(results) + FOOT.format(made_with=made_with))
