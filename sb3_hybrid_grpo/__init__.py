"""Hybrid Group Relative Policy Optimization for Stable-Baselines3."""

from pathlib import Path

import sb3_hybrid_grpo.envs  # noqa: F401  registers the environments
from sb3_hybrid_grpo.branching import check_branching, make_branchable
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.maskable import MaskableHybridGRPO
from sb3_hybrid_grpo.recurrent import RecurrentHybridGRPO

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "HybridGRPO",
    "MaskableHybridGRPO",
    "RecurrentHybridGRPO",
    "__version__",
    "check_branching",
    "make_branchable",
]
