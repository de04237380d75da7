"""Evaluation of a policy beside a random one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv


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
