"""HybridGRPO in RL Baselines3 Zoo: ``python -m sb3_hybrid_grpo.zoo``, or :func:`register` in your own launcher."""

from pathlib import Path

from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO

__all__ = ["ALGORITHM", "config_file", "register"]

ALGORITHM = "hybrid_grpo"
"""The algorithm's name for ``--algo``."""


def config_file() -> Path:
    """
    Find the YAML file with entries for envs that the Zoo's file for PPO does not list.

    :return: The file: inside the package in an installation, beside the package in a clone
    """
    package = Path(__file__).parents[1]
    installed = package / "zoo_configs" / "hybrid_grpo.yml"
    return installed if installed.is_file() else package.parent / "zoo_configs" / "hybrid_grpo.yml"


def register() -> None:
    """
    Register ``hybrid_grpo`` with ``rl_zoo3``: the algorithm, its entries, its tuning. Call it before the Zoo's functions::

        import sb3_hybrid_grpo.zoo
        from rl_zoo3.train import train

        sb3_hybrid_grpo.zoo.register()
        train()
    """
    import rl_zoo3.train
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params

    from sb3_hybrid_grpo.zoo.manager import experiment_manager
    from sb3_hybrid_grpo.zoo.tuning import sample_hybrid_grpo_params

    rl_zoo3.ALGOS[ALGORITHM] = HybridGRPO
    HYPERPARAMS_SAMPLER[ALGORITHM] = sample_hybrid_grpo_params
    HYPERPARAMS_CONVERTER[ALGORITHM] = convert_onpolicy_params
    # the Zoo has no registry for experiment managers
    rl_zoo3.train.ExperimentManager = experiment_manager  # type: ignore[attr-defined, assignment]
