"""Show how an env is branched, whether its siblings are exact, what they cost, and how much noise a group could remove."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import check_branching, make_branchable
from sb3_hybrid_grpo.branching.groups import AUTO_HORIZON
from sb3_hybrid_grpo.commands.arguments import positive_int
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.commands.evaluation import make_env
from sb3_hybrid_grpo.commands.noise import N_STEPS, Act, noise_share, random_actions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("env", metavar="ENV_ID", help="id of a gymnasium env, for example CartPole-v1 or module:Env-v0")
    parser.add_argument("--n-samples", type=positive_int, default=4, help="N, the members of a group (default: %(default)s)")
    horizon = "K, steps between forks, or auto or episode (default: 256, as auto)"
    parser.add_argument("--branch-horizon", type=_horizon, default=AUTO_HORIZON, help=horizon)
    parser.add_argument("--model", type=Path, help="a saved HybridGRPO, whose actions are taken instead of random ones")


def _horizon(text: str) -> int:
    return AUTO_HORIZON if text in ("auto", "episode") else positive_int(text)


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 for an env that cannot be branched."""
    made: Any = make_env(options.env, n_envs=1, seed=0)
    act = None if options.model is None else _actions_of(options.model, made.envs[0])
    print(report := check_branching(made.envs[0], options.n_samples, options.branch_horizon))
    if report.engine == "copied":
        print(f"  noise      {_noise(make_branchable(made.envs[0]), act)}")
    elif act is not None:
        print("  noise      is estimated with copies alone, so --model is not used")
    made.close()
    return int(not report.is_exact)


def _noise(env: Any, act: Act | None) -> str:
    """Say whether steps draw random numbers, how "auto" begins, and how much noise members share with these actions."""
    env.reset(seed=0)
    env.get_wrapper_attr("check_siblings")()
    seen = env.get_wrapper_attr("saw_noise")()
    if not seen:
        known = "no step draws random numbers" if seen is False else "whether steps draw random numbers is not known"
        unused = "" if act is None else ". So --model is not used"
        return f'{known}: "auto" begins as PPO, and looks for noise by probes{unused}'
    begins = 'steps draw random numbers: "auto" begins with groups'
    whose = "random actions" if act is None else "the model's actions"
    try:
        share = noise_share(env, act or random_actions(env))
    except Exception as error:
        return f"{begins}. How much of the variance of returns is noise is not known: {error}"
    return f"{begins}. With {whose}, {share:.0%} of the variance of {N_STEPS}-step returns is noise that members share"


def _actions_of(path: Path, env: gym.Env[Any, Any]) -> Act:
    """A saved policy's sampled actions. Observations are normalised if a ``VecNormalize`` was saved beside the policy."""
    normalize: Any = None
    try:
        model = HybridGRPO.load(path, device="cpu")
        if saved := next(path.parent.glob("*/vecnormalize.pkl"), None):
            normalize = VecNormalize.load(str(saved), DummyVecEnv([lambda: env])).normalize_obs
    except Exception as error:
        raise CommandError(f"--model received {path}, needs the file of a HybridGRPO for this env: {error!r}") from error
    return lambda _, obs: model.predict(normalize(obs) if normalize else obs, deterministic=False)[0]
