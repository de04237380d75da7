"""The ``compare`` command: many runs of several algorithms, at equal simulator steps and equal data per update."""

import argparse
import importlib
import inspect
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.benchmark.pool import Evaluated, execute
from sb3_hybrid_grpo.benchmark.presets import PRESETS, Preset
from sb3_hybrid_grpo.benchmark.results import Results
from sb3_hybrid_grpo.benchmark.variants import ALGORITHMS, Variant, algorithm_class, make_variant
from sb3_hybrid_grpo.benchmark.worker import Run
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules
from sb3_hybrid_grpo.train_arguments import parse_hyperparams, positive_int

# What an option overrides in the preset of every env.
OVERRIDES = ("algorithms", "budget", "seeds", "evaluations", "episodes", "normalize", "update_sizes", "batch_sizes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's arguments.

    :param parser: The subcommand's parser.
    """
    absent = argparse.SUPPRESS  # each env has its own, in presets.py
    parser.add_argument("--env", nargs="+", default=absent, help="ids of gymnasium envs; by default all that have a preset")
    parser.add_argument(
        "--algorithms",
        nargs="+",
        default=absent,
        help=f"{', '.join(ALGORITHMS)}, each optionally with arguments of its own: hybrid,n_samples:8,branch_horizon:16",
    )
    parser.add_argument("--budget", type=positive_int, help="simulator steps of a run, siblings' included", default=absent)
    parser.add_argument("--seeds", type=positive_int, help="runs of each algorithm with each of its settings", default=absent)
    parser.add_argument("--update-sizes", type=positive_int, nargs="+", help="samples of an update", default=absent)
    parser.add_argument("--batch-sizes", type=positive_int, nargs="+", help="samples of a minibatch", default=absent)
    parser.add_argument("--evaluations", type=positive_int, help="evaluations of a run", default=absent)
    parser.add_argument("--episodes", type=positive_int, help="episodes of an evaluation", default=absent)
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="normalise observations and rewards (VecNormalize)",
        default=absent,
    )
    parser.add_argument(
        "--hyperparams", nargs="+", default=[], metavar="key:value", help="arguments of every algorithm, such as gamma:0.9"
    )
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count(), help="runs side by side, a thread each")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/compare"), help="folder of the results")


def run(options: argparse.Namespace) -> int:
    """
    Execute the runs that are not there yet, and keep each as it ends.

    :param options: The command's options.
    :return: The exit code: 0; 1 if a run failed; 130 after Ctrl-C.
    """
    require_modules(("tqdm",), extra="compare")
    # everything that can be wrong shows before the first run
    planned = [(env, preset_of(env, options)) for env in dict.fromkeys(getattr(options, "env", PRESETS))]
    variants = {env: variants_of(preset) for env, preset in planned}
    output_folder(options.output)
    results = {env: Results(options.output, env) for env, _ in planned}
    if len({one.csv_path for one in results.values()}) < len(results):
        raise CommandError(f"--env received {' '.join(results)}, of which several are the same env: name each once")
    for env, preset in planned:
        results[env].check(protocol(env, preset))
    runs = [
        one
        for env, preset in planned
        for one in runs_of(env, preset, variants[env])
        if (one.variant.algorithm, one.variant.settings, one.seed) not in {row.run for row in results[env].rows}
    ]
    print(f"{len(runs)} runs to go, {options.jobs} at a time; results in {options.output}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too, as Ctrl-C does
    try:
        outcome = execute_all(runs, results, options.jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
    for one, error in outcome.failures:
        print(f"FAILED: {describe(one)}: {error}")
    if outcome.interrupted:
        print("Interrupted. Finished runs are kept; the same command goes on with the others.")
        return 130
    print(f"{len(runs) - len(outcome.failures)} runs finished, {len(outcome.failures)} failed.")
    return 1 if outcome.failures else 0


class Outcome(NamedTuple):
    """
    What became of the runs.

    :param failures: Runs that ended with an error, and what they said.
    :param interrupted: Whether Ctrl-C ended it.
    """

    failures: list[tuple[Run, str]]
    interrupted: bool


def execute_all(runs: list[Run], results: dict[str, Results], jobs: int) -> Outcome:
    """
    Execute runs side by side, with a progress bar in simulator steps.

    :param runs: The runs.
    :param results: Where finished runs go, by env.
    :param jobs: How many at a time.
    :return: What became of them.
    """
    from tqdm import tqdm

    failures: list[tuple[Run, str]] = []
    steps = [0] * len(runs)
    with (
        tqdm(total=sum(one.budget for one in runs), unit=" steps", unit_scale=True, smoothing=0.05) as bar,
        closing(execute(runs, jobs)) as events,
    ):
        try:
            for event in events:
                one = runs[event.number]
                if isinstance(event, Evaluated):
                    reached = event.row.simulator_steps
                    bar.set_postfix_str(f"{describe(one)}: {event.row.mean_reward:.1f}", refresh=False)
                else:
                    reached = one.budget  # whole updates, or a failure, may have left some over
                    if event.error is None:
                        results[one.env].add(event.rows)
                    else:
                        results[one.env].fail((one.variant.algorithm, one.variant.settings, one.seed), event.error)
                        failures.append((one, event.error))
                bar.update(reached - steps[event.number])
                steps[event.number] = reached
        except KeyboardInterrupt:
            return Outcome(failures, interrupted=True)
    return Outcome(failures, interrupted=False)


def describe(one: Run) -> str:
    """
    Name a run.

    :param one: The run.
    :return: Its env, algorithm, settings and seed.
    """
    return f"{one.env} {one.variant.algorithm} ({one.variant.settings}) seed {one.seed}"


def preset_of(env: str, options: argparse.Namespace) -> Preset:
    """
    Find what the runs on an env share.

    :param env: The env's id.
    :param options: The command's options, which override the env's preset.
    :return: The settings.
    :raises CommandError: if there is no such env
    """
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise CommandError(
            f"--env received {env!r}: {error} Needed is the id of a registered env, for example CartPole-v1; "
            "for one that your own module registers, module:Env-v0"
        ) from error
    preset = PRESETS.get(name, Preset())
    given = {name: value for name, value in vars(options).items() if name in OVERRIDES}
    given = {name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value for name, value in given.items()}
    shared = preset.hyperparams | parse_hyperparams(options.hyperparams)
    if "batch_size" in shared:
        raise CommandError("--hyperparams received batch_size; use --batch-sizes, which every algorithm is tried with")
    return replace(preset, **given, hyperparams=shared)


def variants_of(preset: Preset) -> list[Variant]:
    """
    Give every algorithm the same search.

    :param preset: How the env is compared.
    :return: Every algorithm with every update size and batch size.
    :raises CommandError: if one of them is not what it may be, or its first rollout more than the budget
    """
    unused = [
        key
        for key in preset.hyperparams
        if not any(key in inspect.signature(algorithm_class(algorithm)).parameters for algorithm in preset.algorithms)
    ]
    if unused:
        raise CommandError(f"--hyperparams received {', '.join(unused)}, which none of {', '.join(preset.algorithms)} has")
    found = (
        make_variant(algorithm, preset.hyperparams, preset.n_steps, update_size, batch_size)
        for update_size, batch_size, algorithm in product(preset.update_sizes, preset.batch_sizes, preset.algorithms)
    )
    # an algorithm with a batch size of its own is the same with every batch size of the search
    variants = list({(variant.algorithm, variant.settings): variant for variant in found}.values())
    dearest = max(variants, key=lambda variant: variant.update_cost)
    if preset.budget < dearest.update_cost:
        raise CommandError(
            f"--budget received {preset.budget} simulator steps, which is less than one rollout of {dearest.algorithm}, "
            f"{dearest.update_cost} steps: raise it, or lower --update-sizes"
        )
    return variants


def runs_of(env: str, preset: Preset, variants: list[Variant]) -> Iterator[Run]:
    """
    List the runs on an env, one seed of everything after the other, so that what is there at any time can be compared.

    :param env: The env's id.
    :param preset: What they share.
    :param variants: What they do not.
    :return: The runs.
    """
    for seed, variant in product(range(preset.seeds), variants):
        yield Run(env, variant, seed, preset.budget, preset.evaluations, preset.episodes, preset.normalize)


def protocol(env: str, preset: Preset) -> dict[str, object]:
    """
    Name what must agree for results to be comparable; more seeds, algorithms and settings can be added at any time.

    :param env: The env's id.
    :param preset: What the runs share.
    :return: For JSON.
    """
    grows = ("algorithms", "seeds", "update_sizes", "batch_sizes")
    return {"env": env, **{name: value for name, value in asdict(preset).items() if name not in grows}}
