"""Envs, and the evaluation of a policy in them, beside a random one."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo.cli import CommandError, install_command


def make_env(env_id: str, n_envs: int, seed: int) -> VecEnv:
    """
    Make monitored envs in this process.

    :param env_id: The env's id.
    :param n_envs: How many.
    :param seed: Seed of the first; the others count up.
    :return: The vectorised env.
    """
    try:
        return make_vec_env(env_id, n_envs=n_envs, seed=seed)
    except gym.error.DependencyNotInstalled as error:
        raise CommandError(
            f"The env {env_id} needs a package that is not installed: {error} For MuJoCo envs: {install_command('mujoco')}, "
            f"for Box2D envs: {install_command('box2d')}"
        ) from error
    except gym.error.Error as error:
        raise CommandError(
            f"Received the env {env_id!r}: {error} Needed is the id of a registered env, for example CartPole-v1; "
            "for one that your own module registers, module:Env-v0"
        ) from error
    except ImportError as error:
        raise CommandError(f"Received the env {env_id!r}, but an import failed: {error}") from error


def default_policy(observation_space: gym.Space[Any]) -> str:
    """
    Choose SB3's policy for an observation space.

    :param observation_space: The env's observation space.
    :return: The policy's name.
    """
    if isinstance(observation_space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def normalized_like(model: BaseAlgorithm, env: VecEnv) -> VecEnv:
    """
    Show a policy its observations as it saw them in training; rewards stay the env's own.

    :param model: The model that was trained.
    :param env: Envs of the evaluation.
    :return: The envs, under the statistics of the model's VecNormalize if it has one.
    """
    trained = model.get_vec_normalize_env()
    if trained is None:
        return env
    normalized = VecNormalize(env, training=False, norm_reward=False)
    normalized.obs_rms = trained.obs_rms  # read only: training=False
    return normalized


class RandomPolicy:
    """
    Draws actions from the action space, whatever it sees.

    :param env: The env to act in.
    :param seed: Seed of the draws.
    """

    def __init__(self, env: VecEnv, seed: int) -> None:
        self._space = env.action_space
        self._space.seed(seed)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """
        Draw one action per env.

        :param observation: Only its number of envs is used.
        :param state: Handed back.
        :param episode_start: Not used.
        :param deterministic: Not used.
        :return: The actions and the state.
        """
        batch = next(iter(observation.values())) if isinstance(observation, dict) else observation
        return np.array([self._space.sample() for _ in range(len(batch))]), state


@dataclass
class Evaluation:
    """
    Rewards of some episodes.

    :param rewards: One per episode, undiscounted, as the env gave them.
    """

    rewards: list[float]

    def __str__(self) -> str:
        return f"{np.mean(self.rewards):.1f} ± {np.std(self.rewards):.1f}"

    def as_dict(self) -> dict[str, Any]:
        """
        Prepare for JSON.

        :return: Mean, standard deviation and every reward.
        """
        mean, std = float(np.mean(self.rewards)), float(np.std(self.rewards))
        return {"mean_reward": mean, "std_reward": std, "rewards": self.rewards}


def evaluate(policy: BaseAlgorithm | RandomPolicy, env: VecEnv, episodes: int) -> Evaluation:
    """
    Run whole episodes with the deterministic policy.

    :param policy: The policy.
    :param env: Monitored envs of its own, with the training's observation statistics if there are any; closed at the end.
    :param episodes: How many.
    :return: The rewards.
    """
    rewards, _ = evaluate_policy(policy, env, episodes, deterministic=True, return_episode_rewards=True)
    env.close()
    assert isinstance(rewards, list)
    return Evaluation([float(reward) for reward in rewards])
