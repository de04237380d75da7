"""HybridGRPO in RL Baselines3 Zoo: ``python -m sb3_hybrid_grpo.zoo``, or :func:`register` in a launcher of one's own."""

from pathlib import Path

from sb3_hybrid_grpo.commands.cli import install_command
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO

__all__ = ["ALGORITHM", "config_file", "register"]

ALGORITHM = "hybrid_grpo"
"""What ``--algo`` calls it."""


def config_file() -> Path:
    """
    Find the hyperparameters that ``train`` uses when no ``--conf-file`` is given.

    :return: Their file: in the package once that is installed, beside it in a clone
    """
    package = Path(__file__).parents[1]
    installed = package / "zoo_configs" / "hybrid_grpo.yml"
    return installed if installed.is_file() else package.parent / "zoo_configs" / "hybrid_grpo.yml"


def register() -> None:
    """
    Make ``hybrid_grpo`` known to ``rl_zoo3``: the algorithm, its tuning, and training envs that can be branched. To be called
    before the Zoo's own functions::

        import sb3_hybrid_grpo.zoo
        from rl_zoo3.train import train

        sb3_hybrid_grpo.zoo.register()
        train()

    :raises ImportError: if the Zoo is not installed
    """
    try:
        import rl_zoo3.exp_manager
        import rl_zoo3.train
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    except ImportError as error:
        raise ImportError(f"RL Baselines3 Zoo cannot be imported ({error}); install with: {install_command('zoo')}") from error
    from sb3_hybrid_grpo.zoo.manager import HybridExperimentManager
    from sb3_hybrid_grpo.zoo.tuning import convert_hybrid_grpo_params, sample_hybrid_grpo_params

    rl_zoo3.ALGOS[ALGORITHM] = HybridGRPO
    HYPERPARAMS_SAMPLER[ALGORITHM] = sample_hybrid_grpo_params
    HYPERPARAMS_CONVERTER[ALGORITHM] = convert_hybrid_grpo_params
    # the Zoo has no table of these
    rl_zoo3.exp_manager.ExperimentManager = HybridExperimentManager  # type: ignore[misc]
    rl_zoo3.train.ExperimentManager = HybridExperimentManager  # type: ignore[attr-defined]
