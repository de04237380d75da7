"""Compare HybridGRPO with PPO and TRPO at equal simulator steps and equal data per update."""

import argparse
import inspect
import os
import sys
from contextlib import closing
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from sb3_hybrid_grpo.benchmark.presets import PRESETS, Preset
from sb3_hybrid_grpo.benchmark.results import Results, read_notes, stamp, write_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY, Run, side_by_side
from sb3_hybrid_grpo.benchmark.variants import ALGORITHMS, Variant, algorithm_class, make_variant
from sb3_hybrid_grpo.commands.arguments import parse_hyperparams, positive_int
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules
from sb3_hybrid_grpo.commands.evaluation import make_env

GROWS = ("algorithms", "seeds", "n_envs", "update_sizes", "batch_sizes")  # other settings must agree with earlier results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    of_preset: dict[str, Any] = {"default": argparse.SUPPRESS}  # the default is each env's own, in presets.py
    several: dict[str, Any] = {"nargs": "+", **of_preset}
    algorithms = f"{', '.join(ALGORITHMS)}, each optionally with arguments of its own: hybrid,n_samples:8,branch_horizon:16"
    parser.add_argument("--env", help="ids of gymnasium envs; by default all that have a preset", **several)
    parser.add_argument("--algorithms", help=algorithms, **several)
    for name, more, text in (
        ("budget", of_preset, "simulator steps of a run, siblings included"),
        ("seeds", of_preset, "runs of each algorithm with each of its settings"),
        ("n-envs", of_preset, "the same envs and n_steps for every algorithm: the class alone is swapped"),
        ("update-sizes", several, "samples of an update"),
        ("batch-sizes", several, "samples of a minibatch"),
        ("evaluations", of_preset, "evaluations of a run"),
        ("episodes", of_preset, "episodes of an evaluation"),
    ):
        parser.add_argument(f"--{name}", type=positive_int, help=text, **more)
    normalize = argparse.BooleanOptionalAction
    parser.add_argument("--normalize", action=normalize, help="normalise observations and rewards", **of_preset)
    shared: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "key:value"}
    parser.add_argument("--hyperparams", help="arguments of every algorithm, such as gamma:0.9", **shared)
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--output", type=Path, default="benchmarks/compare", help="folder of results (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Execute the missing runs and keep each result; the exit code is 1 if a run failed, 130 after Ctrl-C."""
    require_modules(("tqdm",), extra="compare")
    # all mistakes of the user are found before the first run
    presets = {env: preset_of(env, options) for env in dict.fromkeys(getattr(options, "env", PRESETS))}
    planned = {env: variants_of(env, preset) for env, preset in presets.items()}
    paths = {env: output_folder(options.output) / f"{env.rpartition(':')[2].replace('/', '-')}.csv" for env in presets}
    results = {env: Results(path, COLUMNS, KEY) for env, path in paths.items()}
    if len({one.path for one in results.values()}) < len(results):
        raise CommandError(f"--env received {' '.join(results)}, of which several are the same env: name each once")
    runs = []
    for env, preset in presets.items():
        note_protocol(results[env], {"env": env} | {key: one for key, one in asdict(preset).items() if key not in GROWS})
        done, shared = results[env].done(), (preset.budget, preset.evaluations, preset.episodes, preset.normalize)
        # seed by seed over all variants, so that unfinished results can be compared at any time
        wanted = (Run(env, variant, seed, *shared) for seed, variant in product(range(preset.seeds), planned[env]))
        runs += [one for one in wanted if one.key not in done]
    print(f"{len(runs)} runs to go, {options.jobs} at a time; results in {options.output}")
    try:
        failures = execute_all(runs, results, options.jobs)
    except KeyboardInterrupt:
        print("Interrupted. Finished runs are kept; the same command goes on with the others.")
        return 130
    print(f"{len(runs) - failures} runs finished, {failures} failed.")
    print(f"The report, with figures: python -m sb3_hybrid_grpo compare report {options.output}")
    return 1 if failures else 0


def execute_all(runs: list[Run], results: dict[str, Results], jobs: int) -> int:
    """Execute runs in parallel, with a progress bar, and add each to the table of its env; return how many failed."""
    from tqdm import tqdm

    failures = 0
    with tqdm(total=len(runs), unit="run") as bar, closing(side_by_side(runs, jobs, bar.set_postfix_str)) as ended:
        for one, future in ended:
            error = future.exception()
            if error is None:
                results[one.env].add(future.result())
            else:
                failures += 1
                bar.write(f"FAILED: {one}: {error}", file=sys.stdout)
            note_failure(results[one.env].path, one, error)
            bar.update()
    return failures


def preset_of(env: str, options: argparse.Namespace) -> Preset:
    """The settings of all runs on an env: its preset, overridden by the options."""
    preset = PRESETS.get(env.rpartition(":")[2], Preset())
    given = {key: value for key, value in vars(options).items() if key in asdict(preset) and key != "hyperparams"}
    given = {key: tuple(dict.fromkeys(value)) if isinstance(value, list) else value for key, value in given.items()}
    shared = preset.hyperparams | parse_hyperparams(options.hyperparams)
    if "batch_size" in shared:
        raise CommandError("--hyperparams received batch_size; use --batch-sizes, which every algorithm is tried with")
    return replace(preset, **given, hyperparams=shared)


def variants_of(env: str, preset: Preset) -> list[Variant]:
    """Every algorithm with every update size and batch size; CommandError if a setting is not allowed."""
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
    # drop duplicates: an algorithm that sets its own batch size ignores those of the search
    variants = {(variant.algorithm, variant.settings): variant for variant in found}
    for variant in variants.values():
        try:
            variant.build(make_env(env, variant.n_envs, 0), 0)
        except (ValueError, TypeError) as error:
            raise CommandError(f"{variant.algorithm}: {error}") from error
    return list(variants.values())


def note_protocol(results: Results, wanted: dict[str, Any]) -> None:
    """Write the settings of all runs on an env to a JSON; CommandError if there are results of other settings."""
    path = results.path.with_suffix(".json")
    notes = read_notes(path) if len(results.frame) else {}
    if len(results.frame) and not notes:
        raise CommandError(f"{results.path} has results, but {path}, which says how they were made, is missing: restore it")
    made_with, here = notes.get("made_with", []), stamp()
    # versions without their last number: only 0.1 and 0.2 count steps differently
    old, new = (sorted({one["sb3_hybrid_grpo"].rpartition(".")[0] for one in stamps}) for stamps in (made_with, [here]))
    known, needed = {**(notes or wanted), "version": old or new}, {**wanted, "version": new}
    differing = [f"{key} is {value!r}, there {known.get(key)!r}" for key, value in needed.items() if known.get(key) != value]
    if differing:
        raise CommandError(
            f"{results.path} holds results of other settings: {'; '.join(differing)}. Results are comparable only if these "
            "agree: use the same, or choose another --output."
        )
    write_notes(path, {**wanted, **notes, "made_with": made_with if here in made_with else [*made_with, here]})


def note_failure(table: Path, one: Run, error: BaseException | None) -> None:
    """Record in the JSON beside a table whether a run failed, so that the page can name missing runs."""
    path = table.with_suffix(".json")
    notes, entry = read_notes(path), dict(zip(KEY, one.key, strict=True))
    failed = [known for known in notes.get("failed", []) if {key: known[key] for key in entry} != entry]
    failed += [{**entry, "error": str(error)}] if error is not None else []
    if failed or "failed" in notes:
        write_notes(path, {**notes, "failed": failed})
