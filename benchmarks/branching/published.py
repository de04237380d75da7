"""
Shows how simulators that others published are branched, and that it is exact, as exactness.py shows it for well-known envs.

    python -m venv VENV && VENV/bin/pip install -c constraints.txt -e ".[compare]"
    VENV/bin/pip install --no-deps -r benchmarks/branching/requirements-published.txt
    cd benchmarks/branching && VENV/bin/python published.py > published.md
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from twins import row, table_head, versions_of

from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.commands.cli import versions

STEPS = 160


def _trading() -> gym.Env[Any, Any]:
    closes = 100 * np.exp(np.cumsum(0.01 * np.random.default_rng(0).normal(size=2000)))
    prices = pd.DataFrame(
        {"close": closes, "open": closes, "high": closes, "low": closes, "volume": 1.0, "feature_close": closes}
    )
    prices.index = pd.date_range("2020", periods=len(prices), freq="h")
    return gym.make("TradingEnv", df=prices, positions=[-1, 0, 1], verbose=0, max_episode_duration=100)


def _power_grid() -> gym.Env[Any, Any]:
    grid2op, compat = importlib.import_module("grid2op"), importlib.import_module("grid2op.gym_compat")
    grid = grid2op.make("l2rpn_case14_sandbox", test=True)
    env = compat.GymEnv(grid)
    env.observation_space = compat.BoxGymObsSpace(grid.observation_space, attr_to_keep=["rho", "gen_p", "load_p"])
    env.action_space = compat.DiscreteActSpace(grid.action_space, attr_to_keep=["set_line_status"])
    made: gym.Env[Any, Any] = env
    return made


def _supply_chain() -> gym.Env[Any, Any]:
    made: gym.Env[Any, Any] = importlib.import_module("pyRDDLGym").make("SupplyChain_or", "0")
    return made


def _by_id(env_id: str) -> Callable[[], gym.Env[Any, Any]]:
    return functools.partial(gym.make, env_id)


CASES: list[tuple[str, str, Callable[[], gym.Env[Any, Any]], int]] = [  # package, what is simulated, env, share of the steps
    ("stokasta", "inventory", _by_id("stokasta/DynamicInventory-v0"), 1),
    ("gym_invmgmt", "supply chain", _by_id("GymInvMgmt/MultiEchelon-v0"), 1),
    ("pyRDDLGym", "supply chain", _supply_chain, 1),
    ("grid2op", "power grid", _power_grid, 10),
    ("gym_anm", "power grid", _by_id("ANM6Easy-v0"), 10),
    ("gym_trading_env", "prices", _trading, 1),
    ("gym_anytrading", "prices", _by_id("stocks-v0"), 1),
    ("highway_env", "traffic", _by_id("highway-fast-v0"), 10),
    ("flappy_bird_gymnasium", "game", _by_id("FlappyBird-v0"), 1),
    ("popgym", "cards", _by_id("popgym-HigherLowerEasy-v0"), 1),
]


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    gym.logger.min_level = gym.logger.ERROR
    print(table_head(STEPS).replace("# Branching", "# Published simulators"))
    used = versions()
    for package, topic, make, share in CASES:
        name = f"{package}: {topic}" + (f" ({STEPS // share} steps)" if share > 1 else "")
        try:
            gym.register_envs(importlib.import_module(package))
        except ImportError as error:
            print(f"| {name} | not installed here ({error}) | | | |")
            continue
        used |= versions_of(package)
        print(row(name, make, STEPS // share), flush=True)
        print(name, file=sys.stderr)
    print(f"\n{', '.join([*(f'{name} {version}' for name, version in used.items()), machine()])}")


if __name__ == "__main__":
    main()
