"""Show how an env is branched, whether that is exact, and what it costs."""

import argparse
from typing import Any

from sb3_hybrid_grpo.branching import check_branching
from sb3_hybrid_grpo.commands.arguments import positive_int
from sb3_hybrid_grpo.commands.evaluation import make_env


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("env", metavar="ENV_ID", help="id of a gymnasium env, for example CartPole-v1 or module:Env-v0")
    parser.add_argument("--n-samples", type=positive_int, default=4, help="N, the members of a group (default: %(default)s)")
    parser.add_argument("--branch-horizon", type=_horizon, default=64, help="K, steps between forks, or auto (default: 64)")


def _horizon(text: str) -> int:
    return 64 if text == "auto" else positive_int(text)


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 for an env that cannot be branched."""
    made: Any = make_env(options.env, n_envs=1, seed=0)
    print(report := check_branching(made.envs[0], options.n_samples, options.branch_horizon))
    made.close()
    return int(not report.is_exact)
