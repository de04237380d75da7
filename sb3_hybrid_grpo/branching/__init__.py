"""Branching: members of a group that live beside an env, in copies or snapshots of it."""

from sb3_hybrid_grpo.branching.branchable import make_branchable
from sb3_hybrid_grpo.branching.candidates import Candidates
from sb3_hybrid_grpo.branching.engines import register_engine
from sb3_hybrid_grpo.branching.groups import BranchHorizon, Groups
from sb3_hybrid_grpo.branching.inplace import InPlaceEngine
from sb3_hybrid_grpo.branching.protocol import Engine, SupportsBranching
from sb3_hybrid_grpo.branching.report import BranchingReport, check_branching
from sb3_hybrid_grpo.branching.steps import GroupStep
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper

__all__ = [
    "BranchHorizon",
    "BranchingReport",
    "BranchingWrapper",
    "Candidates",
    "Engine",
    "GroupStep",
    "Groups",
    "InPlaceEngine",
    "SupportsBranching",
    "check_branching",
    "make_branchable",
    "register_engine",
]
