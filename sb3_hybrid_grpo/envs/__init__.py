"""
Reference envs whose rewards depend mostly on noise that no action causes, registered with gymnasium under ``hybrid_grpo/``.

Importing this package registers the envs. MuJoCo is imported only when an env that needs it is made.
"""

import gymnasium as gym

from sb3_hybrid_grpo.envs.gusts import GustWrapper
from sb3_hybrid_grpo.envs.inventory import Inventory
from sb3_hybrid_grpo.envs.queue import Queue
from sb3_hybrid_grpo.envs.swing_up import CartPoleSwingUp, GustyCartPoleSwingUp

__all__ = ["CartPoleSwingUp", "GustWrapper", "GustyCartPoleSwingUp", "Inventory", "Queue"]

gym.register("hybrid_grpo/Inventory-v0", "sb3_hybrid_grpo.envs.inventory:Inventory", max_episode_steps=100)
gym.register("hybrid_grpo/CartPoleSwingUp-v0", "sb3_hybrid_grpo.envs.swing_up:CartPoleSwingUp", max_episode_steps=250)
gym.register(
    "hybrid_grpo/GustyCartPoleSwingUp-v0", "sb3_hybrid_grpo.envs.swing_up:GustyCartPoleSwingUp", max_episode_steps=250
)
gym.register("hybrid_grpo/Queue-v0", "sb3_hybrid_grpo.envs.queue:Queue", max_episode_steps=200)
gym.register(
    "hybrid_grpo/GustyHalfCheetah-v0",
    "sb3_hybrid_grpo.envs.gusts:gusty_mujoco",
    max_episode_steps=1000,
    kwargs={"env_id": "HalfCheetah-v5", "force": 40.0},
)
gym.register(
    "hybrid_grpo/GustyHopper-v0",
    "sb3_hybrid_grpo.envs.gusts:gusty_mujoco",
    max_episode_steps=1000,
    kwargs={"env_id": "Hopper-v5", "force": 4.0},
)
