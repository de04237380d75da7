"""The ``compare report`` command: what the runs of ``compare`` found, as figures and a page that shows them."""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from sb3_hybrid_grpo.benchmark.profiles import performance_profiles
from sb3_hybrid_grpo.benchmark.report_figures import save_figures, save_profiles, styles_of
from sb3_hybrid_grpo.benchmark.report_page import PROFILES, Section, page
from sb3_hybrid_grpo.benchmark.results import Row, read_rows
from sb3_hybrid_grpo.benchmark.statistics import BASELINES, EnvResults, Runs
from sb3_hybrid_grpo.cli import CommandError, output_folder, require_modules, write_text

# Results of another command, with columns of their own.
IGNORED = "gradient_variance"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's arguments.

    :param parser: The subcommand's parser.
    """
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("benchmarks/compare"), help="folder with the results, a CSV per env"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the report, whose README.md and PNGs are replaced; None: the folder with the results",
    )


def run(options: argparse.Namespace) -> int:
    """
    Write the report.

    :param options: The command's options.
    :return: The exit code.
    """
    require_modules(("matplotlib", "rliable"), extra="compare")
    protocols = {path: read_protocol(path.with_suffix(".json")) for path in find_results(options.folder)}
    comparisons = {path: read_env(path, protocol) for path, protocol in protocols.items()}
    output = output_folder(options.output or options.folder)
    styles = styles_of(algorithm for results in comparisons.values() for algorithm in results.best)
    figures_of = {path: save_figures(output, results, styles) for path, results in comparisons.items()}
    profiles = performance_profiles(list(comparisons.values()))
    written = [figure for figures in figures_of.values() for figure in figures]
    if profiles is not None:
        written.append(output / PROFILES)
        save_profiles(written[-1], profiles, styles)
    sections = [
        Section(results, [figure.name for figure in figures_of[path]], protocols[path])
        for path, results in comparisons.items()
    ]
    written.append(output / "README.md")
    write_text(written[-1], page(sections, profiles))
    print("\n".join(str(path) for path in written))
    return 0


def find_results(folder: Path) -> list[Path]:
    """
    Find the CSVs of a comparison.

    :param folder: Its folder.
    :return: Them, sorted.
    :raises CommandError: if there are none
    """
    if not folder.is_dir():
        raise CommandError(f"received {str(folder)!r}, which is not a folder; name one that `compare` wrote its results to")
    paths = sorted(path for path in folder.glob("*.csv") if not path.name.startswith((IGNORED, ".")))
    if not paths:
        raise CommandError(f"{folder} has no results (no CSV); run `compare` with --output {folder} first")
    return paths


def natural_order(text: str) -> list[Any]:
    """
    Sort by numbers where there are numbers: n_envs:4 before n_envs:16.

    :param text: What to sort.
    :return: The key.
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def read_env(path: Path, protocol: dict[str, Any] | None) -> EnvResults:
    """
    Read the results of one env.

    :param path: Its CSV.
    :param protocol: How the runs were made, and which failed; None if that is not known.
    :return: Its variants, baselines first.
    :raises CommandError: if the file holds anything else
    """
    rows = sorted(read_rows(path), key=lambda row: row.simulator_steps)
    if len({row.env for row in rows}) != 1:
        raise CommandError(f"{path} has rows of {len({row.env for row in rows})} envs, needed is exactly one")
    variants: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        known = variants.setdefault((row.algorithm, row.settings), {}).setdefault(row.seed, [])
        if known and known[-1].simulator_steps == row.simulator_steps:
            raise CommandError(f"{path} has two evaluations of {row.run} at {row.simulator_steps} simulator steps")
        if not math.isfinite(row.mean_reward) or not math.isfinite(row.wall_seconds):
            raise CommandError(f"{path}: a number of {row.run} at {row.simulator_steps} simulator steps is not finite")
        known.append(row)
    for runs in variants.values():
        for run in runs.values():
            if run[-1].simulator_steps <= 0:
                raise CommandError(f"{path} has no evaluation of {run[-1].run} after training began")

    def order(key: tuple[str, str]) -> tuple[int, str, list[Any]]:
        family = key[0].partition(",")[0]
        return BASELINES.index(family) if family in BASELINES else len(BASELINES), key[0], natural_order(key[1])

    ordered = [Runs(*key, {seed: tuple(run) for seed, run in variants[key].items()}) for key in sorted(variants, key=order)]
    failed = [(one["algorithm"], one["settings"], one["seed"]) for one in (protocol or {}).get("failed", [])]
    return EnvResults(path.stem, rows[0].env.rpartition(":")[2], ordered, failed)


def read_protocol(path: Path) -> dict[str, Any] | None:
    """
    Read how an env's runs were made.

    :param path: The JSON beside its CSV.
    :return: Its content; None if there is no such file.
    :raises CommandError: if it cannot be read
    """
    if not path.exists():
        return None
    try:
        protocol = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}, which says how results were made, cannot be read: {error}") from None
    if not isinstance(protocol, dict):
        raise CommandError(f"{path} does not say how results were made: needed is an object, received {protocol!r}")
    return protocol
