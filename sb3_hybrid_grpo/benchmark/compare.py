"""Compare HybridGRPO with PPO and TRPO at equal simulator steps and equal data per update."""

import argparse
import importlib
import inspect
import os
import signal
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo import __version__
from sb3_hybrid_grpo.benchmark.presets import PRESETS, Preset
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, stamp, write_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY, Pool, Row, Run
from sb3_hybrid_grpo.benchmark.variants import ALGORITHMS, Variant, algorithm_class, make_variant
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, positive_int
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules

# More of these can be added to results at any time; all else must agree.
GROWS = ("algorithms", "seeds", "n_envs", "update_sizes", "batch_sizes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    of_preset: dict[str, Any] = {"default": argparse.SUPPRESS}  # each env has its own, in presets.py
    counts = {"type": positive_int, **of_preset}
    parser.add_argument("--env", nargs="+", help="ids of gymnasium envs; by default all that have a preset", **of_preset)
    parser.add_argument(
        "--algorithms",
        nargs="+",
        help=f"{', '.join(ALGORITHMS)}, each optionally with arguments of its own: hybrid,n_samples:8,branch_horizon:16",
        **of_preset,
    )
    parser.add_argument("--budget", help="simulator steps of a run, siblings included", **counts)
    parser.add_argument("--seeds", help="runs of each algorithm with each of its settings", **counts)
    parser.add_argument("--n-envs", help="the same envs and n_steps for every algorithm: the class alone is swapped", **counts)
    parser.add_argument("--update-sizes", nargs="+", help="samples of an update", **counts)
    parser.add_argument("--batch-sizes", nargs="+", help="samples of a minibatch", **counts)
    parser.add_argument("--evaluations", help="evaluations of a run", **counts)
    parser.add_argument("--episodes", help="episodes of an evaluation", **counts)
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="normalise observations and rewards", **of_preset
    )
    parser.add_argument(
        "--hyperparams", nargs="+", default=[], metavar="key:value", help="arguments of every algorithm, such as gamma:0.9"
    )
    jobs = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=positive_int, default=jobs, help="runs side by side, a thread each (default: %(default)s)"
    )
    folder = Path("benchmarks/compare")
    parser.add_argument("--output", type=Path, default=folder, help="folder of the results (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """
    Execute the runs that are not there yet, and keep each as it ends.

    :param options: The command's options.
    :return: The exit code: 0; 1 if a run failed; 130 after Ctrl-C.
    """
    require_modules(("tqdm", "pandas"), extra="compare")
    # everything that can be wrong shows before the first run
    presets = {env: preset_of(env, options) for env in dict.fromkeys(getattr(options, "env", PRESETS))}
    planned = {env: variants_of(preset) for env, preset in presets.items()}
    results = {env: Results(csv_path(output_folder(options.output), env), COLUMNS, KEY) for env in presets}
    if len({one.path for one in results.values()}) < len(results):
        raise CommandError(f"--env received {' '.join(results)}, of which several are the same env: name each once")
    for env, preset in presets.items():
        note_protocol(results[env], protocol(env, preset))
    runs = []
    for env, preset in presets.items():
        done, shared = results[env].done(), (preset.budget, preset.evaluations, preset.episodes, preset.normalize)
        # one seed of everything after the other, so that what is there at any time can be compared
        wanted = (Run(env, variant, seed, *shared) for seed, variant in product(range(preset.seeds), planned[env]))
        runs += [one for one in wanted if one.key not in done]
    print(f"{len(runs)} runs to go, {options.jobs} at a time; results in {options.output}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too, as Ctrl-C does
    try:
        failures = execute_all(runs, results, options.jobs)
    except KeyboardInterrupt:
        print("Interrupted. Finished runs are kept; the same command goes on with the others.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"{len(runs) - failures} runs finished, {failures} failed.")
    print(f"The report, with figures: python -m sb3_hybrid_grpo compare report {options.output}")
    return 1 if failures else 0


def execute_all(runs: list[Run], results: dict[str, Results], jobs: int) -> int:
    """
    Execute runs side by side, with a progress bar in simulator steps.

    :param runs: The runs.
    :param results: Tables for finished runs, by env.
    :param jobs: How many at a time.
    :return: How many failed.
    """
    from tqdm import tqdm

    reached, failures = {(one.env, one.key): 0 for one in runs}, 0
    with Pool(jobs) as pool, tqdm(total=sum(one.budget for one in runs), unit=" steps", unit_scale=True) as bar:

        def progress(one: Run, steps: int) -> None:
            bar.update(steps - reached[one.env, one.key])
            reached[one.env, one.key] = steps

        def evaluated(one: Run, row: Row) -> None:
            bar.set_postfix_str(f"{one}: {row['mean_reward']:.1f}", refresh=False)
            progress(one, min(row["simulator_steps"], one.budget))

        for one, future in pool.execute(runs, evaluated):
            error = future.exception()
            if error is None:
                results[one.env].add(future.result())
            else:
                failures += 1
                bar.write(f"FAILED: {one}: {error}")
            note_failure(results[one.env].path, one, error)
            progress(one, one.budget)  # whole updates, or a failure, may have left some over
    return failures


def csv_path(folder: Path, env: str) -> Path:
    """The table of an env: called by its id, without a ``module:`` prefix and with dashes for slashes."""
    return folder / f"{env.rpartition(':')[2].replace('/', '-')}.csv"


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
    given = {key: value for key, value in vars(options).items() if key in asdict(preset) and key != "hyperparams"}
    given = {key: tuple(dict.fromkeys(value)) if isinstance(value, list) else value for key, value in given.items()}
    shared = preset.hyperparams | parse_hyperparams(options.hyperparams)
    if "batch_size" in shared:
        raise CommandError("--hyperparams received batch_size; use --batch-sizes, which every algorithm is tried with")
    return replace(preset, **given, hyperparams=shared)


def variants_of(preset: Preset) -> list[Variant]:
    """
    Give every algorithm the same search.

    :param preset: How the env is compared.
    :return: Every algorithm with every update size and batch size.
    :raises CommandError: if one of them is not what it may be, or an update more than the budget
    """
    parameters = [inspect.signature(algorithm_class(algorithm)).parameters for algorithm in preset.algorithms]
    unused = [key for key in preset.hyperparams if not any(key in accepted for accepted in parameters)]
    if unused:
        raise CommandError(f"--hyperparams received {', '.join(unused)}, which none of {', '.join(preset.algorithms)} has")
    shapes = product(preset.update_sizes, preset.batch_sizes, preset.algorithms)
    found = [make_variant(algorithm, preset, update_size, batch_size) for update_size, batch_size, algorithm in shapes]
    if preset.budget < max(preset.update_sizes):
        raise CommandError(
            f"--budget received {preset.budget} simulator steps, which is less than an update of {max(preset.update_sizes)} "
            "samples: raise it, or lower --update-sizes"
        )
    # an algorithm with a batch size of its own is the same with every batch size of the search
    return list({(variant.algorithm, variant.settings): variant for variant in found}.values())


def protocol(env: str, preset: Preset) -> dict[str, Any]:
    """All that must agree for results on an env to be comparable, for JSON."""
    return {"env": env} | {name: value for name, value in asdict(preset).items() if name not in GROWS}


def note_protocol(results: Results, wanted: dict[str, Any]) -> None:
    """
    Refuse to mix runs that cannot be compared, and note how these are made.

    :param results: The env's table.
    :param wanted: What all of them share.
    :raises CommandError: if there are results that were made otherwise
    """
    path = results.path.with_suffix(".json")
    notes = read_notes(path) if len(results.frame) else {}
    if len(results.frame) and not notes:
        raise CommandError(f"{results.path} has results, but {path}, which says how they were made, is missing: restore it")
    known = notes or wanted
    differing = [f"{key} is {value!r}, there {known.get(key)!r}" for key, value in wanted.items() if known.get(key) != value]
    release = __version__.rpartition(".")[0]
    others = {one["sb3_hybrid_grpo"] for one in notes.get("made_with", [])}
    differing += [f"version is {release}, there {one}" for one in sorted(others) if one.rpartition(".")[0] != release]
    if differing:
        raise CommandError(
            f"{results.path} holds results of other settings: {'; '.join(differing)}. Results are comparable only if these "
            "agree: use the same, or choose another --output."
        )
    here, made_with = stamp(), notes.get("made_with", [])
    write_notes(path, {**wanted, **notes, "made_with": made_with if here in made_with else [*made_with, here]})


def note_failure(table: Path, one: Run, error: BaseException | None) -> None:
    """
    Note whether a run failed, so that no one takes those that did not for all of them.

    :param table: The env's table.
    :param one: The run.
    :param error: What it ended with; None if it did not fail.
    """
    path = table.with_suffix(".json")
    notes = read_notes(path)
    entry = dict(zip(KEY, one.key, strict=True))
    failed = [known for known in notes.get("failed", []) if {key: known[key] for key in entry} != entry]
    failed += [{**entry, "error": str(error)}] if error is not None else []
    if failed or "failed" in notes:
        write_notes(path, {**notes, "failed": failed})
