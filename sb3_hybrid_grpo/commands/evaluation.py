"""Make envs, and evaluate a trained policy in them."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo.commands.cli import CommandError, install_command


def make_env(env_id: str, n_envs: int, seed: int) -> VecEnv:
    """
    Make monitored envs in this process. The first env gets the seed, the next ones seed + 1, seed + 2, ...

    :raises CommandError: if there is no such env, or a package that it needs is missing
    """
    try:
        try:
            return make_vec_env(env_id, n_envs=n_envs, seed=seed)
        except (AssertionError, ValueError):  # SB3 asks for render_mode="rgb_array", which some envs refuse
            return make_vec_env(env_id, n_envs=n_envs, seed=seed, env_kwargs={"render_mode": None})
    except (gym.error.Error, ImportError) as error:
        needed = "Needed is the id of a registered env, for example CartPole-v1; for one of your own module, module:Env-v0"
        if isinstance(error, gym.error.DependencyNotInstalled):
            needed = f"MuJoCo envs need {install_command('mujoco')}, Box2D envs {install_command('box2d')}"
        raise CommandError(f"Received the env {env_id!r}: {error} {needed}") from error


def default_policy(observation_space: gym.Space[Any]) -> str:
    """The name of SB3's policy for an observation space."""
    if isinstance(observation_space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def normalized_like(model: BaseAlgorithm, env: VecEnv) -> VecEnv:
    """Normalise observations with the statistics of a model's training; rewards stay raw."""
    trained = model.get_vec_normalize_env()
    if trained is None:
        return env
    normalized = VecNormalize(env, training=False, norm_reward=False)
    normalized.obs_rms = trained.obs_rms  # read only: training=False
    return normalized
