"""The page of a comparison's report, in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sb3_hybrid_grpo.benchmark.profiles import HIGHEST_THRESHOLD, Profiles
from sb3_hybrid_grpo.benchmark.report_figures import label_of
from sb3_hybrid_grpo.benchmark.report_text import anchor, interval, plain, plural, scores, steps, table
from sb3_hybrid_grpo.benchmark.statistics import OURS, EnvResults, Estimate, Runs

PROFILES = "profiles.png"
HOW_TO_READ = """\
**How to read this.** Algorithms are compared at equal *simulator* steps, siblings' included. Numbers are interquartile means
over seeds (without the lowest and the highest quarter) with 95 % bootstrap intervals. "Mean over training" is over all
evaluations after step 0, "final" over the last two. **Bold** are each algorithm's best settings, by the plain mean over those
evaluations and all seeds: chosen alike, though who has more variants picks from more. "Ours" is all but PPO and TRPO. "Not
separated": the intervals of the means over training overlap; that proves no equality: with five seeds a difference of one
standard deviation often stays hidden. Intervals of few seeds are somewhat narrow. Steps to PPO's final score are beside those
of the PPO that has that score in the end, and of the first PPO that is as high at any time. Training times were taken with
other runs on other cores. Figures leave out what is below all curves from a tenth of the steps on, and what ends no
higher than the untrained policy."""


@dataclass(frozen=True)
class Section:
    """
    What the page says about one env.

    :param results: Its results.
    :param figures: File names of its figures, the curves first.
    :param protocol: How the runs were made; None if that is not known.
    """

    results: EnvResults
    figures: list[str]
    protocol: dict[str, Any] | None


def page(sections: Sequence[Section], profiles: Profiles | None) -> str:
    """
    Write the page.

    :param sections: One per env.
    :param profiles: The profiles over envs; None if there are none.
    :return: Markdown.
    """
    comparisons = [section.results for section in sections]
    parts = ["# Comparison", *summary(comparisons), HOW_TO_READ, *over_envs(comparisons, profiles)]
    for section in sections:
        parts += env_section(section)
    return "\n\n".join(parts) + "\n"


def steps_beside_ppo(variant: Runs, results: EnvResults, target: Runs) -> str:
    """
    Write when a variant reaches the best PPO's final score.

    :param variant: The variant.
    :param results: The env's results.
    :param target: The PPO with that score.
    :return: Steps, and what share that is of that PPO's and of the first PPO's to get there, at whatever settings; the shares
        are missing where PPO's mean is never that high.
    """
    score = target.final.value
    own, its, first = variant.steps_to_reach(score), target.steps_to_reach(score), results.first_ppo_to_reach(score)
    shares = " / ".join("–" if other is None else f"{100 * own / other:.0f} %" for other in (its, first)) if own else ""
    return f"{steps(own)} ({shares})" if own is not None and first else steps(own)


def verdict(ours: Estimate, ppo: Estimate) -> str:
    """
    Say who is ahead.

    :param ours: Ours.
    :param ppo: PPO's.
    :return: In words.
    """
    overlap = ours.overlaps(ppo)
    if overlap is None:
        return "no verdict, too few seeds"
    return "not separated" if overlap else "ours ahead" if ours.value > ppo.value else "PPO ahead"


def summary(comparisons: Sequence[EnvResults]) -> list[str]:
    """
    Write a line per env.

    :param comparisons: All envs.
    :return: Paragraphs.
    """
    header = ("env", "PPO, mean over training", "ours, mean over training", "PPO, final", "ours, final")
    rows, verdicts = [], []
    for results in comparisons:
        ours, ppo = results.best_training(OURS), results.best_training("ppo")
        our_final, target = results.best_final(OURS), results.best_final("ppo")
        cells = [interval(one.training) if one else "not run" for one in (ppo, ours)]
        cells += [interval(one.final) if one else "not run" for one in (target, our_final)]
        for index, one in ((1, ours), (3, our_final)):
            cells[index] += f" `{one.algorithm}`" if one else ""
        comparable = verdict(ours.training, ppo.training) if ours and ppo else "nothing to compare"
        verdicts.append("no verdict, runs failed" if results.failed else comparable)
        cells += [steps_beside_ppo(ours, results, target) if ours and target else "", verdicts[-1]]
        rows.append([f"[{results.env}](#{anchor(results.env)})", *cells])
    counts = ", ".join(
        f"{name} on {verdicts.count(name)}" for name in dict.fromkeys(["ours ahead", "not separated", "PPO ahead", *verdicts])
    )
    return [
        table((*header, "ours to PPO's final: steps (of its / of the first)", "verdict"), rows),
        f"Of {plural(len(rows), 'env')}: {counts}.",
    ]


def over_envs(comparisons: Sequence[EnvResults], profiles: Profiles | None) -> list[str]:
    """
    Show the profiles, or say why there are none.

    :param comparisons: All envs.
    :param profiles: Their profiles.
    :return: Paragraphs.
    """
    if profiles is None:
        return ["No performance profiles: they need two envs or more on which PPO learned something, and PPO on every env."]
    shown = set(profiles.shares)
    missing = sorted({algorithm for results in comparisons for algorithm in results.best} - shown)
    other_envs = [results.env for results in comparisons if results.env not in profiles.envs]
    caption = (
        f"Performance profiles over {', '.join(profiles.envs)}: the share of runs whose final score is above a threshold, "
        "where 0 is the untrained policy and 1 the best PPO's final score. Higher lines are better; bands are 95 % bootstrap "
        f"intervals. Each algorithm at its best settings on each env; {plural(profiles.seeds, 'seed')} of each, as many as "
        f"all have. Thresholds end at {HIGHEST_THRESHOLD:g} at the latest."
    )
    if missing:
        caption += f" Left out, as they have no runs on some env: {', '.join(f'`{algorithm}`' for algorithm in missing)}."
    if other_envs:
        caption += f" Left out, as PPO's final score is not above the untrained policy's: {', '.join(other_envs)}."
    return ["## All envs", f"![Performance profiles]({PROFILES})", caption]


def env_section(section: Section) -> list[str]:
    """
    Write about one env.

    :param section: What to write.
    :return: Paragraphs.
    """
    results = section.results
    curves, *others = section.figures
    parts = [f"## {results.env}", f"![Learning curves of {results.env}]({curves})"]
    parts += [*in_words(results), variants_table(results)]
    target = results.best_final("ppo")
    if target is not None:
        first = results.first_ppo_to_reach(target.final.value)
        when = f"first as high at {steps(first)} simulator steps" if first is not None else "never as high"
        height = scores([target.final.value])[0]
        parts.append(f"PPO's final score is {height}, with `{target.settings}`; an interquartile mean of PPO is {when}.")
    parts += [f"![All settings]({figure})" for figure in others]
    parts += cautions(results)
    if section.protocol is None:
        return [*parts, "How these runs were made is not known: there is no JSON beside the CSV."]
    made = "; ".join(f"{key} {plain(value)}" for key, value in section.protocol.items() if key not in ("env", "failed"))
    return [*parts, f"How it was made: {made}."]


def in_words(results: EnvResults) -> list[str]:
    """
    Say who won.

    :param results: An env's results.
    :return: Paragraphs.
    """
    ranking = [(results.best_training(group), results.best_final(group)) for group in (None, OURS, "ppo")]
    return [
        "**Mean over training**, each algorithm at its best settings (bold): "
        + winner([(variant, variant.training) for variant, _ in ranking if variant is not None]),
        "**Final**, at any settings: " + winner([(variant, variant.final) for _, variant in ranking if variant is not None]),
    ]


def winner(ranking: Sequence[tuple[Runs, Estimate]]) -> str:
    """
    Say who is highest, and whether ours and PPO are apart.

    :param ranking: The highest of all, the best of ours and the best PPO; the last two may be missing.
    :return: A sentence.
    """
    highest, estimate = ranking[0]
    text = f"highest is {label_of(highest.algorithm)} at {interval(estimate)}"
    for variant, other in ranking[1:]:
        if variant is not highest:
            label = label_of(variant.algorithm)
            text += f"; {f'best of ours is {label}' if variant.group == OURS else f'{label} is'} at {interval(other)}"
    if [variant.group for variant, _ in ranking[1:]] != [OURS, "ppo"]:
        return text + "."
    ours, ppo = ranking[1][1], ranking[2][1]
    relation = {True: "overlap", False: "do not overlap", None: "are not known"}[ours.overlaps(ppo)]
    return f"{text}. The intervals of the best of ours and the best PPO {relation}: {verdict(ours, ppo)}."


def variants_table(results: EnvResults) -> str:
    """
    Show every variant.

    :param results: An env's results.
    :return: Markdown.
    """
    header = ["algorithm", "settings", "seeds", "mean over training", "final"]
    header += ["steps to PPO's final score (of its / of the first)", "each seed's steps to it"]
    header += ["training time, median", "each seed's mean over training (their mean)"]
    target = results.best_final("ppo")
    rows = []
    for variant in results.variants:
        chosen = "**" if variant is results.best[variant.algorithm] else ""
        cells = [f"{chosen}{label_of(variant.algorithm)}{chosen}", f"{chosen}{variant.settings}{chosen}"]
        cells += [str(len(variant.runs)), interval(variant.training), interval(variant.final)]
        if target is None:
            cells += ["", ""]
        else:
            each = variant.seeds_steps_to_reach(target.final.value)
            cells += [steps_beside_ppo(variant, results, target), ", ".join(steps(one, "–") for one in each)]
        *means, mean = scores([*variant.means, variant.means.mean()])
        rows.append([*cells, f"{variant.wall_seconds:,.0f} s", f"{', '.join(means)} ({mean})"])
    return table(header, rows)


def cautions(results: EnvResults) -> list[str]:
    """
    Say what a comparison of these runs has to allow for.

    :param results: An env's results.
    :return: Paragraphs.
    """
    tried = ", ".join(f"{label_of(name)} {len(results.settings_of(name))}" for name in results.best)
    notes = [f"Settings tried: {tried}."]
    if results.failed:
        named = "; ".join(f"{label_of(algorithm)} ({settings}) seed {seed}" for algorithm, settings, seed in results.failed)
        notes.append(f"**Missing, because they failed:** {named}. Nothing follows from the others alone.")
    seeds = sorted({len(variant.runs) for variant in results.variants})
    if len(seeds) > 1:
        notes.append(f"Not all variants have as many seeds: from {seeds[0]} to {seeds[-1]}.")
    ends = [end for variant in results.variants for end in variant.last_steps]
    if min(ends) < 0.95 * max(ends):
        notes.append(f"Not all runs are equally long: they end between {min(ends):,} and {max(ends):,} simulator steps.")
    return [" ".join(notes)]
