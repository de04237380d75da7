"""
The results of benchmarks/extensions.sh in one table: each extension beside the same settings without it.

    python benchmarks/extensions_table.py benchmarks/extensions > benchmarks/extensions/table.md
"""

import sys
from pathlib import Path

from sb3_hybrid_grpo.benchmark.page import table
from sb3_hybrid_grpo.benchmark.report import interval, read_env
from sb3_hybrid_grpo.benchmark.statistics import EnvResults, Runs

# What each is compared with, and under which names `compare` knows them. ent_coef="auto" and sampling_temperature are 0.1's.
DEFAULT = "hybrid"
EXTENSIONS: dict[str, dict[str, str]] = {
    DEFAULT: {
        'reward_transform="tanh"': "hybrid,reward_transform:tanh",
        '"symlog"': "hybrid,reward_transform:symlog",
        '"normalize"': "hybrid,reward_transform:normalize",
        '["normalize", "tanh"]': 'hybrid,reward_transform:["normalize","tanh"]',
        '"scale"': "hybrid,reward_transform:scale",
        "ent_coef=0.01": "hybrid,ent_coef:0.01",
        'ent_coef="auto"': "hybrid,ent_coef:auto",
        "branch_horizon=64": "hybrid,branch_horizon:64",
        "branch_horizon=16": "hybrid,branch_horizon:16",
        "branch_horizon=1": "hybrid,branch_horizon:1",
    },
    "hybrid,branch_horizon:64": {'reward_transform="group"': "hybrid,branch_horizon:64,reward_transform:group"},
    "hybrid,branch_horizon:16": {
        'advantage_estimator="paper"': "hybrid,branch_horizon:16,advantage_estimator:paper",
        '"paper_per_sample"': "hybrid,branch_horizon:16,advantage_estimator:paper_per_sample",
    },
    "hybrid,branch_horizon:1": {
        'advantage_estimator="paper"': "hybrid,branch_horizon:1,advantage_estimator:paper",
        "sampling_temperature=2.0": "hybrid,branch_horizon:1,sampling_temperature:2.0",
        'action_selection="greedy"': "hybrid,branch_horizon:1,action_selection:greedy",
        'action_selection="softmax"': "hybrid,branch_horizon:1,action_selection:softmax",
        "paper_kwargs()": "paper",
        "grpo_kwargs()": "grpo",
    },
}


def cell(variants: dict[str, Runs], algorithm: str, reference: str) -> str:
    """
    Write how an extension did on an env.

    :param variants: The env's results.
    :param algorithm: What `compare` calls the extension.
    :param reference: What it calls the same without it.
    :return: The estimate, with an arrow where its interval lies apart from the reference's.
    """
    if algorithm not in variants or reference not in variants:
        return "not run"
    own, other = variants[algorithm].training, variants[reference].training
    arrow = "" if own.overlaps(other) is not False else " ▲" if own.value > other.value else " ▼"
    return interval(own) + arrow


def rows(envs: list[EnvResults]) -> list[list[str]]:
    """List the table's rows, one per extension, each after what it is compared with."""
    by_name = [{variant.algorithm: variant for variant in env.variants} for env in envs]
    known = {name for one in by_name for name in one}
    found = []
    for reference, extensions in EXTENSIONS.items():
        _, _, horizon = reference.partition("branch_horizon:")
        name = f"with `branch_horizon={horizon}`" if horizon else 'the default (`branch_horizon="auto"`)'
        found.append([f"**{name}**", *(f"**{cell(one, reference, reference)}**" for one in by_name)])
        found += [
            [f"`{name}`", *(cell(one, label, reference) for one in by_name)]
            for name, label in extensions.items()
            if label in known
        ]
    return found


def main() -> None:
    """Print the table."""
    envs = [read_env(path, {}) for path in sorted(Path(sys.argv[1]).glob("*.csv"))]
    print(table(["each alone", *(f"`{env.env}`" for env in envs)], rows(envs)))


if __name__ == "__main__":
    main()
