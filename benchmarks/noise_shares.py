"""
How much of the variance of random actions' returns is noise, by which "auto" decides whether rollouts begin grouped?

Writes one row per env: the share that a training measures, and those from five other sets of states, noises and actions.

    {
        python benchmarks/noise_shares.py hybrid_grpo/{Inventory,Queue,GustyCartPoleSwingUp,GustyHalfCheetah,GustyHopper}-v0 \
            FrozenLake-v1 CliffWalking-v1
        for task in InvManagementBacklog InvManagementLostSales Newsvendor; do
            PYTHONPATH=benchmarks/third_party "$VENVS/venv-or-gym/bin/python" benchmarks/noise_shares.py --rows \
                "tasks:third_party/$task-v0"
        done
        PYTHONPATH=benchmarks/third_party "$VENVS/venv-minigrid/bin/python" benchmarks/noise_shares.py --rows \
            tasks:third_party/DynamicObstacles-v0
        PYTHONPATH=benchmarks/third_party "$VENVS/venv-pcgym/bin/python" benchmarks/noise_shares.py --rows \
            tasks:third_party/Reactor-v0
    } > benchmarks/noise_shares.md
"""

import sys
from typing import Any

from sb3_hybrid_grpo.auto_grouping import NOISY_ABOVE
from sb3_hybrid_grpo.benchmark.page import plain
from sb3_hybrid_grpo.benchmark.results import stamp
from sb3_hybrid_grpo.branching import make_branchable
from sb3_hybrid_grpo.branching.noise import noise_share, random_actions
from sb3_hybrid_grpo.commands.evaluation import make_env

SETS = 6


class OtherStates:
    """An env whose resets have other seeds."""

    def __init__(self, env: Any, number: int) -> None:
        self.step, self._reset, self._number = env.step, env.reset, number

    def reset(self, seed: int | None = None) -> Any:
        return self._reset() if seed is None else self._reset(seed=seed + 1000 * self._number)


def row(env_id: str) -> str:
    env: Any = make_branchable(make_env(env_id, n_envs=1, seed=0).envs[0])
    env.reset(seed=0)
    env.get_wrapper_attr("check_siblings")()
    shares = []
    for number in range(SETS):
        make = env.get_wrapper_attr("sibling_maker")
        shares.append(noise_share(OtherStates(env, number), make, random_actions(env, number)))
    others = ", ".join(f"{share:.0%}" for share in shares[1:])
    begins = "grouped" if shares[0] > NOISY_ABOVE else "single"
    return f"| {env_id.removeprefix('tasks:')} | {shares[0]:.0%} | {others} | {begins} |"


def main() -> None:
    env_ids = sys.argv[1:]
    if "--rows" not in env_ids:
        print("# Share of noise in the variance of random actions' returns\n\n`benchmarks/noise_shares.py`, see there.")
        print(f"{plain(stamp())}.\n\n| env | share | other sets | rollouts begin |\n|---|---|---|---|")
    for env_id in env_ids:
        if env_id != "--rows":
            print(row(env_id), flush=True)


if __name__ == "__main__":
    main()
