"""The page of the speed benchmark: a table for every section, and what people have to know of it."""

from collections.abc import Sequence
from pathlib import Path

from sb3_hybrid_grpo.benchmark.speed_report import Column, Row, Table, read_rows
from sb3_hybrid_grpo.cli import install_command, write_text

SBX = "SBX PPO"
RAW_LOOP = "env.step loop"
_GROUPS = {"n_samples": "N", "branch_horizon": "K"}
_PER_SECOND = (
    *(Column("rollout", "rollout: simulator steps/s", 0), Column("rollout_to_ppo", "× PPO")),
    *(Column("update", "update: samples/s", 0), Column("update_to_ppo", "× PPO")),
    *(Column("overall", "both: samples/s", 0), Column("overall_to_ppo", "× PPO")),
)
TABLES = {
    "speed": Table(
        "speed",
        "Algorithms",
        "Each with the same number of samples in a rollout, and of envs; minibatches of 64. TRPO's update is one step of its "
        "policy and ten epochs of its critic. Both: rollout and update together.",
        {"env": "env", "n_envs": "envs", "algorithm": "algorithm", **_GROUPS},
        (*_PER_SECOND[:2], Column("rollout_to_raw", "share of the env.step loop"), *_PER_SECOND[2:]),
    ),
    "states": Table(
        "states",
        "The update of a state",
        "PPO and HybridGRPO with K = 1 on the same number of states: what N samples of a state cost, over what PPO pays for "
        "one. Minibatches of 64 states, as PPO's, and of 64 samples. `samples` are PPO's.",
        {"env": "env", "algorithm": "algorithm", **_GROUPS, "minibatch_states": "states in a minibatch"},
        (Column("update", "update: µs a state", 1), Column("update_to_ppo", "time × PPO's")),
    ),
    "branching": Table(
        "branching",
        "Branching alone",
        "A step of the whole group, with random actions, over N plain steps of the env; and what that leaves for a sibling, "
        "forks included, over one plain step. Both in turn, block by block, in one process. K = 1: all siblings branch at "
        "every step. K = 64: they live on.",
        {"env": "env", **_GROUPS, "siblings": "siblings are"},
        (
            *(Column("step", "plain step: µs", 1), Column("group_step", "group's step: µs", 1)),
            *(Column("slow_down", "× N plain steps"), Column("sibling", "a sibling's step × a plain one")),
        ),
        settings=("repeats",),
    ),
    "scaling": Table(
        "scaling",
        "How cost grows",
        "With the group N (`n_samples`), the number of envs, and the width of both hidden layers; what is not varied is "
        "4, 4 and 64. Samples in a rollout are the same everywhere, minibatches 64. PPO has the same envs and width.",
        {"env": "env", "varied": "varied", "value": "to", "algorithm": "algorithm", "branch_horizon": "K"},
        _PER_SECOND,
    ),
    "memory": Table(
        "memory",
        "Memory",
        "Of the rollout buffer, on the same number of states; and how far a rollout and an update raise the peak of a process "
        "of their own above its peak with libraries and envs (on Linux).",
        {"env": "env", "n_envs": "envs", "algorithm": "algorithm", **_GROUPS},
        (
            *(Column("buffer", "buffer: MiB", 2), Column("buffer_to_ppo", "× PPO")),
            *(Column("peak", "peak: MiB", 0), Column("peak_to_ppo", "× PPO")),
        ),
        settings=("states", "n_epochs", "repeats"),
    ),
    "workers": Table(
        "workers",
        "Workers",
        "Rollouts in a SubprocVecEnv, one env in each of its processes, which run beside this one.",
        {"env": "env", "algorithm": "algorithm", **_GROUPS, "vec_env": "envs in", "n_envs": "envs"},
        (
            Column("rollout", "rollout: simulator steps/s", 0),
            *(Column("to_one", "× one worker"), Column("to_dummy", "× DummyVecEnv of as many")),
        ),
    ),
}
INTRODUCTION = """# Speed

Medians over repeats (lowest–highest). A ratio is formed of two measurements of one round, seconds apart, so a busy machine
favours neither. One thread on one core, a core for each worker. Made by `python -m sb3_hybrid_grpo.benchmark.speed`.
"""


def made_with(rows: Sequence[Row], env: str) -> str:
    """
    Say how rows were made: what all share, then what only some envs' have.

    :param rows: Rows of one section.
    :param env: The label that names the env.
    :return: A line.
    """
    shared = {name: value for name, value in rows[0].made_with.items() if all(row.made_with[name] == value for row in rows)}
    lines = [", ".join(f"{name} {value}" for name, value in shared.items())]
    for label in dict.fromkeys(row.labels[env] for row in rows):
        own = next(row.made_with for row in rows if row.labels[env] == label)
        differing = ", ".join(f"{name} {value}" for name, value in own.items() if name not in shared)
        lines += [f"{label}: {differing}"] if differing else []
    return "; ".join(line for line in lines if line) + "."


def section_text(table: Table, rows: Sequence[Row]) -> str:
    """
    Write a section for people.

    :param table: The section's table.
    :param rows: Its rows.
    :return: Markdown.
    """
    titles = [*table.labels.values(), *(column.title for column in table.columns)]
    lines = [f"## {table.title}", "", table.text, "", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [*(row.labels[name] for name in table.labels), *(column.cell(row) for column in table.columns)]
        lines.append("| " + " | ".join(cells) + " |")
    env, *_ = table.labels
    lines += ["", made_with(rows, env)]
    with_sbx = {row.labels[env] for row in rows if row.labels.get("algorithm") == SBX}
    without = [label for label in dict.fromkeys(row.labels[env] for row in rows) if label not in with_sbx]
    if table.section == "speed" and without:
        lines += ["", f"{SBX} was not measured in {', '.join(without)}: it was not installed. {install_command('speed')}"]
    return "\n".join([*lines, ""])


def time_table(rows: Sequence[Row]) -> str:
    """
    Split the time of a sample: what the bare loop takes for a step, what a rollout takes besides, and the update.

    :param rows: Of the section on algorithms.
    :return: Markdown.
    """
    raw = {row.labels["env"]: row.statistics("rollout") for row in rows if row.labels["algorithm"] == RAW_LOOP}
    lines = [
        "### Where the time goes\n",
        "Microseconds a sample, from the medians above: a step of the env as in the bare loop, what a rollout takes besides "
        "(siblings pass by wrappers that only check, which the loop does not), and the update with all its epochs.\n",
        "| env | algorithm | N | K | env.step | rollout besides | update | together |\n|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        step, rollout, update = raw.get(row.labels["env"]), row.statistics("rollout"), row.statistics("update")
        if step is not None and rollout is not None and update is not None:
            parts = [1e6 / step[0], 1e6 / rollout[0] - 1e6 / step[0], 1e6 / update[0]]
            labels = [row.labels[name] for name in ("env", "algorithm", *_GROUPS)]
            lines.append(f"| {' | '.join([*labels, *(f'{part:,.1f}' for part in (*parts, sum(parts)))])} |")
    return "\n".join([*lines, ""])


def save_page(folder: Path) -> str:
    """
    Save ``speed.md``, of all sections that were measured.

    :param folder: The benchmark's folder.
    :return: The page.
    """
    parts = [INTRODUCTION]
    for table in TABLES.values():
        rows = read_rows(folder, table)
        if rows:
            parts.append(section_text(table, rows))
            parts += [time_table(rows)] if table.section == "speed" else []
            if (folder / f"{table.section}.png").exists():
                parts.append(f"![{table.title}]({table.section}.png)\n")
    text = "\n".join(parts)
    write_text(folder / "speed.md", text)
    return text
