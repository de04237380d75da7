"""
Measure how much the policy gradient of each estimator varies, and what it is on average.

On each env, SB3's PPO trains a policy. It is frozen before its first update, in the middle and at the end, with its critic
and VecNormalize's statistics, so that no estimator is measured on a policy of its own. Then every estimator gives one
gradient from each of many independent rollouts, all of the same number of simulator steps: PPO in ``n_groups * n_samples``
envs, the others in ``n_groups`` groups. The reference that they are held against is PPO's gradient over many more rollouts.

The gradient is that of ``-mean(A * log π(a|s))`` over the whole rollout, by the parameters of the actor. Every rollout begins
at random points of fresh episodes, so rollouts are independent; siblings fork there. The critic has learned plain rewards,
where the paper's with tanh would have learned f(R): its estimator is therefore shown without tanh too.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo.benchmark.gradient_rollouts import ESTIMATORS, GAMMA, HORIZONS, Collector, Frozen, Gradients, Size
from sb3_hybrid_grpo.benchmark.gradient_statistics import Interval, Sample, compare
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.plots import save_intervals
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, stamp, write_notes
from sb3_hybrid_grpo.commands.arguments import positive_int, seed_int
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules, write_text
from sb3_hybrid_grpo.commands.evaluation import make_env

Done = Callable[[], object]  # called after each rollout

ENVS = ["hybrid_grpo/Inventory-v0", "hybrid_grpo/CartPoleSwingUp-v0"]
TRAINING: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64, "n_epochs": 10, "gamma": GAMMA, "device": "cpu"}
SEED_STEP = 1_000_000  # rollouts have other seeds than the training, whose envs have seed, seed + 1, ...
FEWEST_ROLLOUTS, LARGE = 8, 100  # the page writes "> 100" for larger numbers
NAME, NOTHING = "gradient_variance", Interval(math.nan, math.nan, math.nan)
ENDS = ("", "_low", "_high")
INTERVALS = ("trace_ratio", "noise_ratio", "relative_bias")
COLUMNS: dict[str, type] = {
    **{"env": str, "stage": str, "trained_steps": int, "estimator": str, "advantages": str, "rollouts": int},
    **{"simulator_steps": int, "trace": float, "squared_norm": float},
    **{f"{name}{end}": float for name in INTERVALS for end in ENDS},
    **{"cosine": float, "beta": float, "variance_removed": float},
}
EXPLANATION = f"""\
How much the policy gradient of one rollout varies, and what it is on average. All estimators share one frozen policy and
critic, trained by SB3's PPO, and the number of simulator steps in a rollout, siblings included. Ratios are to PPO's gradient,
measured in more rollouts; the row "PPO" holds it against itself. Intervals are 95 %, by bootstrap over independent rollouts.

![Variance of the policy gradient]({NAME}.png)

- **variance**: trace of the gradient's covariance. The paper's and GRPO's gradients have other units: theirs is left out.
- **noise**: the same, with the gradient scaled first so that its expected component along PPO's expected gradient is as long
  as that. Free of units; 0.5: half as many rollouts make the same progress with the same noise. "∞": no progress.
- **noise, as trained**: with advantages normalised over the rollout, as training normalises them in each minibatch.
- **off PPO**: length of (expected gradient − PPO's expected gradient) over that of PPO's. Its square is estimated free of the
  noise of both means; where that is below zero, so that no difference was seen, the root has a minus sign.
- **cosine**: between the two expected gradients, free of their noise; by chance it may pass 1 a little.
- **β**, **removed**: mean share of the group baseline, and of the advantages' variance that it took off.

PPO's expected gradient is no ground truth: it rests on the critic too. K is the branch horizon. "own trace": at forks, the
executed member's trace goes on with its own advantage, not with the mean of its group; no option of HybridGRPO."""


class _Freezer(BaseCallback):
    """Copies the policy before its first update, in the middle of the training, and at its end."""

    def __init__(self, budget: int, done: Done) -> None:
        super().__init__()
        self.budget, self.done = budget, done
        self.copies: list[Frozen] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        if not self.copies or (len(self.copies) == 1 and self.num_timesteps >= self.budget / 2):
            self._copy(model, self.num_timesteps - model.n_steps * model.n_envs)  # not yet updated with this rollout
        self.done()

    def _on_training_end(self) -> None:
        self._copy(self.model, self.num_timesteps)

    def _copy(self, model: Any, trained_steps: int) -> None:
        parameters = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        env, stage = model.get_vec_normalize_env(), ("start", "middle", "end")[len(self.copies)]
        self.copies.append(Frozen(stage, trained_steps, parameters, (env.obs_rms.copy(), env.ret_rms.copy())))


def train(env_id: str, budget: int, seed: int, size: Size, done: Done) -> list[Frozen]:
    """Train PPO; return the policy at the start, in the middle and at the end."""
    env = VecNormalize(make_env(env_id, size.n_groups * size.n_samples, seed), gamma=GAMMA)
    freezer = _Freezer(budget, done)
    PPO("MlpPolicy", env, n_steps=size.n_steps, seed=seed, **TRAINING).learn(budget, callback=freezer)
    env.close()
    return freezer.copies


def measure(env_id: str, frozen: Frozen, seed: int, rollouts: tuple[int, int], size: Size, done: Done) -> pd.DataFrame:
    """Measure all estimators on one policy: two rows each. ``rollouts`` counts those of an estimator and of the reference."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    references: dict[str, Sample] = {}
    for number, horizon in enumerate(HORIZONS):
        estimators = [estimator for estimator in ESTIMATORS if estimator.horizon == horizon]
        collector = Collector(env_id, horizon, size, seed + number * SEED_STEP, frozen)
        gathered: list[list[Gradients]] = []
        for _ in range(sum(rollouts) if horizon is None else rollouts[0]):
            gathered.append(collector.collect(estimators))
            done()
        collector.env.close()
        if horizon is None:  # comes first; PPO's own row uses the first rollouts, the reference the others
            references = samples_of([one[0] for one in gathered[rollouts[0] :]], rng, size)
        for place, estimator in enumerate(estimators):
            own = [one[place] for one in gathered[: rollouts[0]]]
            baseline = np.mean([one.baseline for one in own], axis=0).tolist()
            for advantages, sample in samples_of(own, rng, size).items():
                known = (env_id, *frozen[:2], estimator.name, advantages, len(own), size.simulator_steps)
                found, is_plain = compare(sample, references[advantages]), advantages == "plain"
                # gradients in other units cannot be compared
                trace = found.trace_ratio if estimator.same_units or not is_plain else NOTHING
                bias = found.squared_bias if estimator.same_units and is_plain else NOTHING
                lengths = (math.copysign(math.sqrt(abs(square)), square) for square in bias)
                numbers = (*found[:2], *trace, *found.noise_ratio, *lengths, found.cosine, *baseline)
                rows.append(dict(zip(COLUMNS, (*known, *(float(f"{number:.4g}") for number in numbers)), strict=True)))
    return pd.DataFrame(rows)


def samples_of(gradients: list[Gradients], rng: np.random.Generator, size: Size) -> dict[str, Sample]:
    """Put the gradients of one estimator together, plain and normalised; ``rng`` is for the bootstrap."""
    names = ("plain", "normalised")
    return {name: Sample(np.stack([getattr(one, name) for one in gradients]), rng, size.resamples) for name in names}


def save_report(results: Results) -> None:
    """Save the page and the plot of a table with at least one measured policy."""
    folder, rows, notes = results.path.parent, results.frame, read_notes(results.path.with_suffix(".json"))
    panels = [f"{one.env.rpartition('/')[2]}, {one.stage}\n({one.trained_steps:,} steps)" for one in rows.itertuples()]
    named = rows.assign(panel=panels, case=rows.estimator)[rows.advantages == "plain"]
    kinds = {"variance": "trace_ratio", "noise per progress": "noise_ratio"}
    columns = {kind: tuple(f"{name}{end}" for end in ENDS) for kind, name in kinds.items()}
    xlabel = "ratio to PPO at equal simulator steps, 95 % intervals (log axis; arrow: beyond it)"
    save_intervals(folder / f"{NAME}.png", named, columns, xlabel, columns=3, limits=(0.02, 20.0))
    parts = ["# Variance of the policy gradient", EXPLANATION]
    header = ("estimator", "variance", "noise", "noise, as trained", "off PPO", "cosine", "β", "removed")
    for (env, stage, steps), policy in rows.groupby(["env", "stage", "trained_steps"], sort=False):
        parts.append(f"## {env}, {stage} of the training ({steps:,} simulator steps)")
        cells = []
        for own, trained in zip(policy.to_dict("records")[::2], policy.to_dict("records")[1::2], strict=True):
            ratios = (shown(own, "trace_ratio"), shown(own, "noise_ratio"), shown(trained, "noise_ratio"))
            others = (number(own[name]) for name in ("cosine", "beta", "variance_removed"))
            cells.append((own["estimator"], *ratios, shown(own, "relative_bias"), *others))
        parts.append(table(header, cells))
    counts = f"{rows.rollouts[0]} rollouts each and {notes['reference_rollouts']} for the reference"
    parts.append(f"{counts}, {rows.simulator_steps[0]:,} simulator steps a rollout. How it was made: {plain(notes)}.\n")
    write_text(folder / "README.md", "\n\n".join(parts))


def shown(row: dict[str, Any], name: str) -> str:
    """Write a value with its interval; nothing for NaN."""
    value, low, high = (number(row[f"{name}{end}"]) for end in ENDS)
    return value and f"{value} ({low}…{high})"


def number(value: float) -> str:
    """Write a number; nothing for NaN."""
    if abs(value) >= LARGE:
        return "∞" if math.isinf(value) else f"> {LARGE}"
    return "" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--env", nargs="+", default=ENVS, help="ids of gymnasium envs (default: %(default)s)")
    for name, kind, default, text in (
        ("budget", positive_int, 200_000, "simulator steps of each env's training"),
        ("rollouts", positive_int, 100, "rollouts of each estimator and policy"),
        ("reference-rollouts", positive_int, 400, "rollouts of the reference"),
        ("seed", seed_int, 0, "seed of the training"),
        ("output", Path, Path("benchmarks") / NAME, "folder for the results"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--report-only", action="store_true", help="write page and plot of the table that is there")


def check(options: argparse.Namespace, size: Size) -> None:
    """Raise a CommandError if something cannot be measured, before any training."""
    require_modules(("tqdm", "matplotlib", "tabulate"), extra="compare")
    reasons = dict.fromkeys(("rollouts", "reference_rollouts"), (FEWEST_ROLLOUTS, "a variance of fewer means nothing"))
    reasons["budget"] = 3 * size.simulator_steps, "three rollouts, so that start, middle and end of the training differ"
    for name, (least, reason) in reasons.items():
        if (given := getattr(options, name)) < least:
            raise CommandError(f"--{name.replace('_', '-')} received {given}, needs at least {least}: {reason}")
    for env_id in dict.fromkeys(options.env):
        Collector(env_id, 1, size, options.seed).env.close()


def run(options: argparse.Namespace, size: Size = Size()) -> int:  # noqa: B008 (it is immutable)
    """Train, measure, save policy by policy; the exit code is 130 after Ctrl-C."""
    path = options.output / f"{NAME}.csv"
    if options.report_only and path.exists():
        save_report(Results(path, COLUMNS, ("env", "stage")))
        return 0
    th.set_num_threads(1)  # small networks gain nothing from a second one
    check(options, size)
    from tqdm import tqdm

    if (output_folder(options.output) / "README.md").exists() and not path.exists():
        raise CommandError(f"--output received {options.output}, where README.md is not of this command and would be lost")
    path.unlink(missing_ok=True)
    results = Results(path, COLUMNS, ("env", "stage"))
    rollouts = (options.rollouts, options.reference_rollouts)
    total = -(-options.budget // size.simulator_steps) + 3 * (rollouts[0] * len(HORIZONS) + rollouts[1])
    settings = {name: getattr(options, name) for name in ("env", "budget", "rollouts", "reference_rollouts", "seed")}
    settings |= {"rollout": size._asdict(), "training": TRAINING, "made_with": [stamp()]}
    write_notes(path.with_suffix(".json"), settings)
    try:
        with tqdm(total=len(set(options.env)) * total, unit="rollout") as bar:
            for env_id in dict.fromkeys(options.env):
                for count, frozen in enumerate(train(env_id, options.budget, options.seed, size, bar.update)):
                    bar.set_description(f"{env_id}, {frozen.stage}")
                    seed = options.seed + (1 + count * len(HORIZONS)) * SEED_STEP
                    results.add(measure(env_id, frozen, seed, rollouts, size, bar.update))
                    save_report(results)
    except KeyboardInterrupt:
        print(f"\nInterrupted: {options.output} has the policies that were measured to the end.")
        return 130
    print(f"Saved: {options.output / 'README.md'}, and beside it the CSV, the plot and the settings.")
    return 0
