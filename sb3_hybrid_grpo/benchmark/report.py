"""Draw the results of compare, and write a page about them. It begins with the text of ``about.md`` in the results' folder."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_hybrid_grpo.benchmark.page import plain, scores, steps, table
from sb3_hybrid_grpo.benchmark.plots import AXES, label_of, save_curves, save_profiles, save_settings, styles_of
from sb3_hybrid_grpo.benchmark.results import Results, read_notes
from sb3_hybrid_grpo.benchmark.runs import COLUMNS, KEY
from sb3_hybrid_grpo.benchmark.statistics import BASELINES, OURS
from sb3_hybrid_grpo.benchmark.statistics import EnvResults, Estimate, Profiles, Runs, performance_profiles
from sb3_hybrid_grpo.commands.cli import CommandError, output_folder, require_modules, write_text

IGNORED, PROFILES = "gradient_variance", "profiles.png"  # IGNORED: results of another command
AHEAD, LEVEL, BEHIND = "ours ahead", "not separated", "PPO ahead"
HOW_TO_READ = """\
**How to read this.** Algorithms are compared at equal *simulator* steps, siblings included. Numbers are interquartile means
over seeds (without the lowest and the highest quarter) with 95 % bootstrap intervals. "Mean over training" is over all
evaluations after step 0, "final" over the last two. **Bold** are each algorithm's best settings, by the plain mean over those
evaluations and all seeds: chosen alike, though who has more variants picks from more. "Ours" is all but PPO and TRPO. "Not
separated": the intervals of the means over training overlap; that proves no equality: with five seeds a difference of one
standard deviation often stays hidden. Intervals of few seeds are somewhat narrow. Steps to PPO's final score are beside those
of the PPO that has it in the end, and of the first PPO that is as high. Training times were taken with other runs beside."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    folder = Path("benchmarks/compare")
    axes: dict[str, Any] = {"nargs": "+", "choices": list(AXES), "default": ["simulator_steps"]}
    parser.add_argument("folder", type=Path, nargs="?", default=folder, help="folder of the results (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the report (default: the results' folder)")
    parser.add_argument("--axes", help="x-axes of the curves (default: simulator_steps)", **axes)


def run(options: argparse.Namespace) -> int:
    """Write the report; the exit code is 0."""
    require_modules(("matplotlib", "rliable", "tabulate"), extra="compare")
    paths = sorted(path for path in options.folder.glob("*.csv") if not path.name.startswith((IGNORED, ".")))
    if not paths:
        raise CommandError(f"{options.folder} has no results (no CSV); run `compare` with --output {options.folder} first")
    notes = {path: read_notes(path.with_suffix(".json")) for path in paths}
    comparisons = {path: read_env(path, of_env) for path, of_env in notes.items()}
    output, everything = output_folder(options.output or options.folder), list(comparisons.values())
    styles = styles_of(algorithm for results in everything for algorithm in results.best)
    profiles = performance_profiles(everything)
    if profiles is not None:
        save_profiles(output / PROFILES, profiles, styles)
    about = options.folder / "about.md"
    title = about.read_text(encoding="utf-8").strip() if about.exists() else "# Comparison"
    parts = [title, *summary(everything), HOW_TO_READ, *over_envs(everything, profiles)]
    for path, results in comparisons.items():
        figures = [f"{results.name}.png"]
        save_curves(output / figures[0], results, styles, options.axes)
        if len(results.variants) > len(results.best):
            figures.append(f"{results.name}-settings.png")
            save_settings(output / figures[1], results, styles)
        parts += env_section(results, figures, notes[path])
    write_text(output / "README.md", "\n\n".join(parts) + "\n")
    print(f"Saved: {output / 'README.md'}, and its figures beside it.")
    return 0


def read_env(path: Path, notes: dict[str, Any]) -> EnvResults:
    """Read the results of one env and the notes beside them: its variants, baselines first; CommandError if broken."""
    rows = Results(path, COLUMNS, KEY).frame.sort_values("simulator_steps", kind="stable")
    if rows.env.nunique() != 1:
        raise CommandError(f"{path} has rows of {rows.env.nunique()} envs, needed is exactly one")
    broken = rows[~np.isfinite(rows.mean_reward) | (rows.groupby(list(KEY)).simulator_steps.transform("max") <= 0)]
    for row in broken[list(KEY)].itertuples(index=False, name=None):
        raise CommandError(f"{path}: the run {row} has a reward that is not finite, or no evaluation after training began")

    def order(variant: Runs) -> tuple[int, str, list[Any]]:
        place = BASELINES.index(variant.group) if variant.group in BASELINES else len(BASELINES)
        numbers = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", variant.settings)]
        return place, variant.algorithm, numbers  # n_envs:4 before n_envs:16

    variants = [Runs(str(name), str(settings), one) for (name, settings), one in rows.groupby(["algorithm", "settings"])]
    return EnvResults(path.stem, rows.env.iloc[0].rpartition(":")[2], sorted(variants, key=order), notes.get("failed", []))


def interval(estimate: Estimate) -> str:
    """Write an estimate with its interval."""
    if estimate.interval is None:
        return f"{scores(estimate.value)[0]} (too few seeds)"
    value, low, high = scores(estimate.value, *estimate.interval)
    return f"{value} [{low}, {high}]"


def steps_beside_ppo(variant: Runs, results: EnvResults, target: Runs) -> str:
    """Write the steps after which a variant reaches the best PPO's final score, beside that PPO's and the first PPO's."""
    score = target.final.value
    own, its, first = variant.steps_to_reach(score), target.steps_to_reach(score), results.first_ppo_to_reach(score)
    if own is None or first is None:
        return steps(own)
    return f"{steps(own)} ({' / '.join(f'{100 * own / one:.0f} %' if one else '–' for one in (its, first))})"


def verdict(ours: Estimate, ppo: Estimate) -> str:
    """Say who is ahead."""
    overlap = ours.overlaps(ppo)
    if overlap is None:
        return "no verdict, too few seeds"
    return LEVEL if overlap else AHEAD if ours.value > ppo.value else BEHIND


def summary(comparisons: Sequence[EnvResults]) -> list[str]:
    """Write a line per env."""
    header = ("env", "PPO, mean over training", "ours, mean over training", "PPO, final", "ours, final")
    rows, verdicts = [], []
    for results in comparisons:
        ours, ppo = results.best_training(OURS), results.best_training("ppo")
        our_final, target = results.best_final(OURS), results.best_final("ppo")
        cells = [interval(one.training) if one else "not run" for one in (ppo, ours)]
        cells += [interval(one.final) if one else "not run" for one in (target, our_final)]
        for index, one in ((1, ours), (3, our_final)):
            cells[index] += f" {label_of(one.algorithm)}" if one else ""
        comparable = verdict(ours.training, ppo.training) if ours and ppo else "nothing to compare"
        verdicts.append("no verdict, runs failed" if results.failed else comparable)
        cells += [steps_beside_ppo(ours, results, target) if ours and target else "", verdicts[-1]]
        anchor = re.sub(r"[^\w-]", "", results.env.lower())  # as GitHub's
        rows.append([f"[{results.env}](#{anchor})", *cells])
    counts = ", ".join(f"{name} on {verdicts.count(name)}" for name in dict.fromkeys([AHEAD, LEVEL, BEHIND, *verdicts]))
    return [
        table((*header, "ours to PPO's final: steps (of its / of the first)", "verdict"), rows),
        f"Of {len(rows)} envs: {counts}.",
    ]


def over_envs(comparisons: Sequence[EnvResults], profiles: Profiles | None) -> list[str]:
    """Show the profiles, or say why there are none."""
    if profiles is None:
        return ["No performance profiles: they need two envs or more on which PPO learned something, and PPO on every env."]
    missing = sorted({label_of(name) for results in comparisons for name in results.best if name not in profiles.shares})
    others = [results.env for results in comparisons if results.env not in profiles.envs]
    caption = (
        f"Performance profiles over {', '.join(profiles.envs)}: the share of runs whose final score is above a threshold, "
        "where 0 is the untrained policy and 1 the best PPO's final score. Higher lines are better; bands are 95 % bootstrap "
        f"intervals. Each algorithm at its best settings on each env; {profiles.seeds} seeds of each, as many as all have."
    )
    caption += f" Left out, as they have no runs on some env: {', '.join(missing)}." if missing else ""
    caption += f" Left out, as PPO's final score is not above the untrained policy's: {', '.join(others)}." if others else ""
    return ["## All envs", f"![Performance profiles]({PROFILES})", caption]


def env_section(results: EnvResults, figures: Sequence[str], notes: dict[str, Any]) -> list[str]:
    """Write about one env: its figures, all variants, how the results were made, and remarks for the reader."""
    parts = [f"## {results.env}", f"![Learning curves of {results.env}]({figures[0]})", variants_table(results)]
    parts += [f"![All settings]({figure})" for figure in figures[1:]]
    remarks = []
    if (target := results.best_final("ppo")) is not None:
        first = steps(results.first_ppo_to_reach(target.final.value), "no number of")
        height = f"PPO's final score is {scores(target.final.value)[0]}, with `{target.settings}`"
        remarks.append(f"{height}; an interquartile mean of PPO is first as high after {first} simulator steps.")
    if results.failed:
        named = "; ".join(f"{label_of(one['algorithm'])} ({one['settings']}) seed {one['seed']}" for one in results.failed)
        remarks.append(f"**Missing, because they failed:** {named}. Nothing follows from the others alone.")
    ends = [end for variant in results.variants for end in variant.last_steps]
    if min(ends) < 0.95 * max(ends):
        remarks.append(f"Not all runs are equally long: they end between {min(ends):,} and {max(ends):,} simulator steps.")
    made = plain({key: value for key, value in notes.items() if key not in ("env", "failed")})
    remarks.append(f"How it was made: {made or 'not known, there is no JSON beside the CSV'}.")
    return [*parts, " ".join(remarks)]


def variants_table(results: EnvResults) -> str:
    """Show every variant."""
    header = ["algorithm", "settings", "seeds", "mean over training", "final"]
    header += ["steps to PPO's final score (of its / of the first)", "each seed's steps to it"]
    header += ["training time, median", "each seed's mean over training (their mean)"]
    target, rows = results.best_final("ppo"), []
    for variant in results.variants:
        bold = "**" if variant is results.best[variant.algorithm] else ""
        cells = [f"{bold}{label_of(variant.algorithm)}{bold}", f"{bold}{variant.settings}{bold}", str(len(variant.runs))]
        cells += [interval(variant.training), interval(variant.final), "", ""]
        if target is not None:
            each = variant.seeds_steps_to_reach(target.final.value)
            cells[5:] = [steps_beside_ppo(variant, results, target), ", ".join(steps(one, "–") for one in each)]
        *means, mean = scores(*variant.means, variant.means.mean())
        ratios = "–" if np.isnan(variant.ratios).any() else ", ".join(f"{one:.2f}" for one in variant.ratios)
        rows.append([*cells, f"{variant.wall_seconds:,.0f} s", f"{', '.join(means)} ({mean})", ratios])
    if all(row[-1] == "–" for row in rows):  # older runs did not record it
        return table(header, [row[:-1] for row in rows])
    return table([*header, "ρ in the middle and at the end, median"], rows)
