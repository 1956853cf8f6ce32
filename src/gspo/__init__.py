"""gspo: train language models by reinforcement learning with Group Sequence Policy Optimization.

    from gspo import GSPOTrainer, GSPOConfig, BaseRewardModel

The mathematics alone is `gspo.core`. Names are loaded when first used, so that `import gspo` and
`gspo --help` do not wait for torch and transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BaseRewardModel": "gspo.rewards",
    "HFRewardModel": "gspo.rewards",
    "MathReward": "gspo.rewards",
    "last_number": "gspo.rewards",
    "DataError": "gspo.errors",
    "SettingError": "gspo.errors",
    "GSPOConfig": "gspo.config",
    "GSPOTrainer": "gspo.training.trainer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gspo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
