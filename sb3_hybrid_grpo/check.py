"""The ``check`` command: how an env is branched, whether that is exact, and what it costs."""

import argparse
from typing import Any, cast

from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo.branching import check_branching
from sb3_hybrid_grpo.evaluation import make_env
from sb3_hybrid_grpo.train_arguments import positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's arguments.

    :param parser: The subcommand's parser.
    """
    parser.add_argument("env", metavar="ENV_ID", help="id of a gymnasium env, for example CartPole-v1 or module:Env-v0")
    parser.add_argument("--n-samples", type=positive_int, default=4, help="N, the members of a group")
    parser.add_argument("--branch-horizon", type=positive_int, default=64, help="K, the steps between two forks")


def run(options: argparse.Namespace) -> int:
    """
    Print the report.

    :param options: The command's options.
    :return: The exit code: 0, or 1 for an env that cannot be branched.
    """
    made = cast(DummyVecEnv, make_env(options.env, n_envs=1, seed=0))
    env: Any = made.envs[0]
    report = check_branching(env, options.n_samples, options.branch_horizon)
    print(report)
    made.close()
    return 0 if report.is_exact else 1
