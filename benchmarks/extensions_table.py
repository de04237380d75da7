"""
The results of benchmarks/extensions.sh in one table: each extension beside the same settings without it.

    python benchmarks/extensions_table.py > benchmarks/extensions/table.md
"""

from pathlib import Path

from sb3_hybrid_grpo.benchmark.report import find_results, read_env
from sb3_hybrid_grpo.benchmark.report_text import interval, table
from sb3_hybrid_grpo.benchmark.statistics import EnvResults, Variant

FOLDER = Path(__file__).parent / "extensions"
DEFAULT = "hybrid"
EXTENSIONS: dict[str, dict[str, str]] = {  # what each is compared with, and under which names `compare` knows them
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


def cell(variants: dict[str, Variant], algorithm: str, reference: str) -> str:
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
    """
    List the table's rows.

    :param envs: The results.
    :return: One per extension, each after what it is compared with.
    """
    by_name = [{variant.algorithm: variant for variant in env.variants} for env in envs]
    found = []
    for reference, extensions in EXTENSIONS.items():
        found.append([f"**{name_of(reference)}**", *(f"**{cell(one, reference, reference)}**" for one in by_name)])
        found += [[f"`{name}`", *(cell(one, label, reference) for one in by_name)] for name, label in extensions.items()]
    return found


def name_of(reference: str) -> str:
    """
    Name what extensions are compared with.

    :param reference: What `compare` calls it.
    :return: For people.
    """
    _, _, horizon = reference.partition("branch_horizon:")
    return f"with `branch_horizon={horizon}`" if horizon else 'the default (`branch_horizon="auto"`)'


def main() -> None:
    """Print the table."""
    envs = [read_env(path, None) for path in find_results(FOLDER)]
    print(table(["each alone", *(f"`{env.env}`" for env in envs)], rows(envs)))


if __name__ == "__main__":
    main()
