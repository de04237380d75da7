"""HybridGRPO for envs in which not every action is valid in every state."""

from typing import Any

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.buffers import MaskableHybridDictRolloutBuffer, MaskableHybridRolloutBuffer
from sb3_hybrid_grpo.group_rollouts import Acted, GroupRollouts
from sb3_hybrid_grpo.signatures import show_arguments


@show_arguments
class MaskableHybridGRPO(GroupRollouts, MaskablePPO):
    """
    :class:`HybridGRPO` with invalid action masking: sb3-contrib's :class:`MaskablePPO` with groups. With ``n_samples=1`` it
    trains bit for bit as MaskablePPO.

    The env's ``action_masks()`` tells which actions are valid in the current state. Each sibling has masks of its own.

    Paper of the masks: https://arxiv.org/abs/2006.14171

    :param args: MaskablePPO's arguments, in its order
    :param kwargs: MaskablePPO's arguments by name, and the arguments of :class:`GroupRollouts`
    """

    _without_groups = MaskablePPO
    _buffer_classes = (MaskableHybridRolloutBuffer, MaskableHybridDictRolloutBuffer)
    _use_masking = True

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """
        See :meth:`GroupRollouts.collect_rollouts`.

        :param env: The training environment
        :param callback: Callback that will be called at each step of each member, and when the rollout begins and ends
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Number of samples of each env
        :param use_masking: Whether to ask the envs for masks; without them every action counts as valid
        :return: False if the callback ended the rollout prematurely
        :raises ValueError: if the envs have no ``action_masks()``
        """
        if use_masking and not is_masking_supported(env):
            raise ValueError(
                "Received an env without action_masks(). Give it that method, wrap it in "
                "sb3_contrib.common.wrappers.ActionMasker(env, mask_fn), or call learn(use_masking=False)."
            )
        self._use_masking = use_masking
        return GroupRollouts.collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps)

    def _act(self, obs: Any, groups: Groups, n_members: int) -> Acted:
        if not self._use_masking:
            return super()._act(obs, groups, n_members)
        masks = groups.action_masks(n_members)
        return *self.policy(obs, action_masks=masks), {"action_masks": masks}

    def _distribution_of(self, obs: Any, steps: slice) -> Any:
        masks = self.rollout_buffer.action_masks[steps]
        return self.policy.get_distribution(obs, action_masks=masks.reshape(-1, masks.shape[-1]))
