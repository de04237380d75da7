"""
What branching costs, env by env. Each row is what ``python -m sb3_hybrid_grpo check`` prints for the env.

    python benchmarks/branching_costs.py > benchmarks/branching/branching.md
"""

import sys

import gymnasium as gym

from sb3_hybrid_grpo import check_branching
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.results import stamp

N_SAMPLES = 4
ENVS = (
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Taxi-v4", "FrozenLake-v1", "Blackjack-v1"),
    *("LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"),
    *("InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"),
    *("ale_py:PongNoFrameskip-v4", "ale_py:BreakoutNoFrameskip-v4"),
    *("hybrid_grpo/Inventory-v0", "hybrid_grpo/Queue-v0", "hybrid_grpo/GustyHopper-v0"),
)


def row(env_id: str) -> list[str]:
    """Measure one env; return its row of the table."""
    try:
        env = gym.make(env_id)
    except (gym.error.Error, ImportError) as error:
        return [env_id, f"not measured: {type(error).__name__}", *[""] * 5]
    one, many = (check_branching(env, N_SAMPLES, horizon) for horizon in (1, 64))
    env.close()
    if not many.is_exact:
        return [env_id, "refused", *[""] * 5]
    siblings = {"copied": "copies", "forked": "forks"}[many.engine]
    times = (f"{time:.0f}" for time in (many.step, many.fork, many.sibling_step))
    return [env_id, siblings, *times, f"{one.slow_down:.2f}", f"{many.slow_down:.2f}"]


def main() -> None:
    """Print the page; times depend on the machine, read the ratios."""
    header = ["env", "siblings are", "step (µs)", "fork (µs)", "a sibling's step (µs)", "K = 1", "K = 64"]
    rows = []
    for env_id in sys.argv[1:] or ENVS:
        print(env_id, file=sys.stderr)
        rows.append(row(env_id))
    print(
        f"# What branching costs\n\n{N_SAMPLES} members. The last two columns: a step of the whole group with all that "
        f"branching costs, over {N_SAMPLES} plain steps of the env; made by `python benchmarks/branching_costs.py`.\n\n"
        f"{table(header, rows)}\n\n{plain(stamp())}"
    )


if __name__ == "__main__":
    main()
