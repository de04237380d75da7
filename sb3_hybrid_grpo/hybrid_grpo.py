"""Hybrid Group Relative Policy Optimization for Stable-Baselines3."""

from typing import Any

from stable_baselines3 import PPO

from sb3_hybrid_grpo.group_rollouts import GroupRollouts
from sb3_hybrid_grpo.signatures import show_arguments


@show_arguments
class HybridGRPO(GroupRollouts, PPO):
    """
    Hybrid Group Relative Policy Optimization: PPO that evaluates N sampled actions in each state instead of one, and keeps the
    critic.

    Every env has a group of N members. Member 0 is executed: only ``env.step`` moves it. The others, its siblings, live in
    copies of the env. They fork from member 0 every ``branch_horizon`` steps, and meet the same noise. Every step of every
    member is training data, and counts as a step: ``n_steps``, ``total_timesteps`` and ``num_timesteps`` mean the same as with
    PPO.

    Paper: https://arxiv.org/abs/2502.01652

    The first arguments, up to ``_init_setup_model``, are those of :class:`stable_baselines3.PPO`, with its defaults. The
    others are given by name; :class:`GroupRollouts` explains them.

    :param args: PPO's arguments, in PPO's order
    :param kwargs: PPO's arguments by name, and the arguments of :class:`GroupRollouts`
    """

    _without_groups = PPO

    @staticmethod
    def paper_kwargs() -> dict[str, Any]:
        """
        Arguments that make it the paper's algorithm (https://arxiv.org/abs/2502.01652).

        :return: A new dict of literals, which serves in RL Zoo's files too
        """
        return {"n_samples": 4, "branch_horizon": 1, "advantage_estimator": "paper", "reward_transform": "tanh"}

    @staticmethod
    def grpo_kwargs() -> dict[str, Any]:
        """
        Arguments that make it DeepSeek's GRPO, state by state (https://arxiv.org/abs/2402.03300).

        :return: A new dict of literals, which serves in RL Zoo's files too
        """
        return {"n_samples": 4, "branch_horizon": 1, "advantage_estimator": "grpo"}
