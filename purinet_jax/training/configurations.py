"""Configurations of training runs, by name or file, with overridden settings."""

import importlib
import importlib.resources
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from purinet_jax.errors import InputError

FOLDER = Path(str(importlib.resources.files("purinet_jax.configs")))
"""The folder of the package's configurations."""


def known_configurations() -> list[str]:
    """Returns the names of the package's configurations, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def base_config() -> ConfigDict:
    """Returns the configuration that the others modify: every setting, with the released value."""
    config: ConfigDict = importlib.import_module("purinet_jax.configs.base").get_config()
    return config


def load_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the ConfigDict of a configuration's `get_config()`, with the base's values of settings that it lacks.

    Args:
      name: one of `known_configurations`, or the path of a Python file.
      overrides: such as `--config.KEY=VALUE`.

    Raises:
      InputError: there is no such file, it fails, a setting is unknown or a value is of another type.
    """
    from absl import flags
    from ml_collections import config_flags

    path = FOLDER / f"{name}.py" if name in known_configurations() else Path(name)
    if not path.is_file():
        known = ", ".join(known_configurations())
        raise InputError(f"{name}: no such configuration file; known by name are {known}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{name}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the user's file may raise anything
        raise InputError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{name}: get_config() returns no ConfigDict but {type(config).__name__}")
    config = ConfigDict(config) if isinstance(config, FrozenConfigDict) else config
    with config.unlocked():
        _complete(config, base_config(), f"{name}: config")
    values = flags.FlagValues()  # apart from absl's own, which belong to the program
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["purinet", *overrides])
        values(["purinet", *overrides])
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise InputError(f"{name}: {' '.join(str(reason).split())}") from error
    return config


def _complete(config: ConfigDict, complete: ConfigDict, name: str) -> None:
    """Adds the settings that `config` lacks. Raises InputError if it has one that `complete` has not."""
    for key in config:
        if key not in complete:
            raise InputError(f"{name}.{key}: no such setting")
    for key, value in complete.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict):
            if not isinstance(config[key], ConfigDict):
                raise InputError(f"{name}.{key}: {config[key]!r} is not a table of settings")
            _complete(config[key], value, f"{name}.{key}")
