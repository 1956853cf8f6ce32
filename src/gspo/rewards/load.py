"""From the name of a reward in a recipe to the callable."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from gspo.errors import SettingError
from gspo.rewards.math import MathReward, last_number


def load_reward(name: str) -> Callable:
    """`last_number`, `math`, `hf:MODEL`, `package.module:name`, or `file.py:name`.

    A class is called without arguments to make the reward.

    Raises:
        SettingError: the module, the file or the name in it is not there.
    """
    if name == "last_number":
        return last_number
    if name == "math":
        return MathReward()
    if name.startswith("hf:"):
        from gspo.rewards.model import HFRewardModel

        return HFRewardModel(name.removeprefix("hf:"))
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise SettingError(
            f"there is no reward '{name}'; it is last_number, math, hf:MODEL, "
            "package.module:name or file.py:name"
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    if not hasattr(module, attribute):
        raise SettingError(f"reward '{name}': {place} has no '{attribute}'")
    found = getattr(module, attribute)
    return found() if isinstance(found, type) else found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SettingError(f"reward: there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # Whatever a user's file raises while it is read, it cannot give a reward.
    except Exception as error:
        raise SettingError(f"reward: {path} fails with {type(error).__name__}: {error}") from error
    return module


def _from_package(name: str) -> ModuleType:
    sys.path.insert(0, "")  # the folder that the command was given in
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SettingError(f"reward: {error}") from None
    finally:
        sys.path.remove("")
