"""The speed benchmark's section on branching without a policy."""

from collections.abc import Callable

from sb3_hybrid_grpo.benchmark.branching_costs import siblings
from sb3_hybrid_grpo.benchmark.speed_cases import make_one, short_name
from sb3_hybrid_grpo.benchmark.speed_report import Row
from sb3_hybrid_grpo.branching import BranchingReport, check_branching
from sb3_hybrid_grpo.errors import BranchingError

N_SAMPLES = 8
HORIZONS = (1, 64)


def sibling_cost(report: BranchingReport) -> float:
    """
    Say what a sibling's step costs.

    :param report: Of an env.
    :return: Plain steps that take as long, forks included; the executed member's step is one.
    """
    return (report.slow_down * report.n_samples - 1) / (report.n_samples - 1)


def measure_branching(env_id: str, repeats: int, done: Callable[[str], None]) -> list[Row]:
    """
    Measure what branching costs in one env.

    :param env_id: The env's id.
    :param repeats: How often, each time in many blocks.
    :param done: Called with a case's name after each measurement.
    :return: A row for each horizon.
    :raises BranchingError: if the env cannot be branched
    """
    env, rows = make_one(env_id), []
    for horizon in HORIZONS:
        labels = {"env": short_name(env_id), "n_samples": str(N_SAMPLES), "branch_horizon": str(horizon)}
        row = Row(labels, {"repeats": str(repeats)})
        for _ in range(repeats):
            report = check_branching(env, N_SAMPLES, horizon)
            if not report.is_exact:
                raise BranchingError(report.refusal)
            row.labels["siblings"] = siblings(report)
            row.add(step=report.step, group_step=report.group_step)
            row.add(slow_down=report.slow_down, sibling=sibling_cost(report))
            done(f"K={horizon}")
        rows.append(row)
    env.close()
    return rows
