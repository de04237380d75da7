"""
Branching: exact copies of envs, in which the siblings of a group are stepped.

The public functions are :func:`fork_env`, :func:`make_branchable` and :func:`check_branching`. Users declare how their
objects are copied by :func:`register_copier`, :func:`register_engine`, :func:`declare_constant`,
:func:`register_vec_wrapper` and :class:`SupportsBranching`. See docs/branching.md.
"""

from sb3_hybrid_grpo.branching.engines import SupportsBranching, declare_constant, register_copier, register_engine
from sb3_hybrid_grpo.branching.groups import BranchHorizon as BranchHorizon, Candidates as Candidates
from sb3_hybrid_grpo.branching.groups import Groups as Groups, GroupStep as GroupStep
from sb3_hybrid_grpo.branching.report import BranchingReport, check_branching
from sb3_hybrid_grpo.branching.vec_calls import uninterrupted as uninterrupted
from sb3_hybrid_grpo.branching.vec_wrappers import register_vec_wrapper
from sb3_hybrid_grpo.branching.wrapper import fork_env, make_branchable

__all__ = [
    "BranchingReport",
    "SupportsBranching",
    "check_branching",
    "declare_constant",
    "fork_env",
    "make_branchable",
    "register_copier",
    "register_engine",
    "register_vec_wrapper",
]
