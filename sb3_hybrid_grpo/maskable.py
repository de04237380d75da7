"""HybridGRPO for envs in which not every action is valid in every state."""

from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.buffers import HybridRolloutBuffer
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.maskable_buffers import MaskableHybridDictRolloutBuffer, MaskableHybridRolloutBuffer
from sb3_hybrid_grpo.sampling import evaluate_actions

SelfMaskableHybridGRPO = TypeVar("SelfMaskableHybridGRPO", bound="MaskableHybridGRPO")


class MaskableHybridGRPO(HybridGRPO):
    """
    :class:`HybridGRPO` with invalid action masking, as sb3-contrib's :class:`MaskablePPO` is PPO with it: the policies,
    ``ActionMasker`` and the callbacks are sb3-contrib's. With ``n_samples=1`` it is MaskablePPO, to the last parameter.

    The env says by ``action_masks()`` which actions are valid where it stands; each sibling asks in its own state.

    Paper of the masks: https://arxiv.org/abs/2006.14171

    All arguments are those of :class:`HybridGRPO`. Actions are Discrete, MultiDiscrete or MultiBinary; ``use_sde`` and
    ``sampling_temperature`` are refused.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableActorCriticPolicy,
        "CnnPolicy": MaskableActorCriticCnnPolicy,
        "MultiInputPolicy": MaskableMultiInputActorCriticPolicy,
    }
    _without_groups = MaskablePPO
    _action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    _buffer_classes = (MaskableHybridRolloutBuffer, MaskableHybridDictRolloutBuffer)
    _use_masking = True

    def _check_policy(self) -> None:
        if not issubclass(self.policy_class, MaskableActorCriticPolicy):
            raise ValueError(
                f'Received the policy {self.policy_class.__name__}, which knows no masks. Use "MlpPolicy", "CnnPolicy" or '
                '"MultiInputPolicy", or a subclass of sb3_contrib.common.maskable.policies.MaskableActorCriticPolicy.'
            )

    def _make_policy(self) -> Any:
        return self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)

    def _act(self, obs: Any, groups: Groups, buffer: HybridRolloutBuffer) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        if not self._use_masking:
            return self._sampled(buffer, obs, None)
        masks = groups.action_masks()
        cast(MaskableHybridRolloutBuffer, buffer).add_masks(masks)
        return self._sampled(buffer, obs, masks)

    def _evaluate(self, batch: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        n_samples = cast(HybridRolloutBuffer, self.rollout_buffer).samples_per_state
        return evaluate_actions(self.policy, batch.observations, actions, n_samples, batch.action_masks)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose an action.

        :param observation: An observation, or a batch of them
        :param state: For recurrent policies; unused
        :param episode_start: For recurrent policies; unused
        :param deterministic: Whether to take the most probable action
        :param action_masks: Which actions are valid; None: all of them
        :return: The action or actions, and ``state``
        """
        policy = cast(MaskableActorCriticPolicy, self.policy)
        return policy.predict(observation, state, episode_start, deterministic, action_masks=action_masks)

    def learn(  # type: ignore[override]
        self: SelfMaskableHybridGRPO,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableHybridGRPO:
        """
        Train. See :meth:`HybridGRPO.learn`.

        :param total_timesteps: Number of steps to execute, over all envs. The simulator takes ``n_samples`` times as many
        :param callback: Callback(s) called at every step
        :param log_interval: Number of rollouts between two logs (None: no logs)
        :param tb_log_name: Name of the run for TensorBoard; None: that of the class
        :param reset_num_timesteps: Whether to start counting steps anew
        :param use_masking: Whether to ask the envs for masks; without them every action counts as valid
        :param progress_bar: Whether to show a progress bar (needs tqdm and rich)
        :return: The trained model
        :raises ValueError: if the envs have no ``action_masks()``
        """
        if use_masking and self.env is not None and not is_masking_supported(self.env):
            raise ValueError(
                "Received an env without action_masks(). Give it that method, wrap it in "
                "sb3_contrib.common.wrappers.ActionMasker(env, mask_fn), or call learn(use_masking=False)."
            )
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
