"""Envs on a cluster: :class:`RayVecEnv`. Needs the extra ``ray``. See docs/fleets.md."""

from sb3_hybrid_grpo.distributed.ray_vec_env import RayVecEnv

__all__ = ["RayVecEnv"]
