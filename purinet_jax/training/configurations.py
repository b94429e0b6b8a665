"""Configurations of training runs, by name or file, with settings overridden. Those that come with the package lie in
`purinet_jax.configs`, in a checkout the top-level `configs/`.
"""

import importlib.resources
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purinet_jax.errors import InputError

FOLDER = Path(str(importlib.resources.files("purinet_jax.configs")))
"""Where the package's own are."""


def known_configurations() -> list[str]:
    """The names of the configurations that come with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """The ConfigDict of a configuration's `get_config()`.

    Args:
      name: one of `known_configurations`, or the path of a Python file.
      overrides: like `--config.KEY=VALUE`.

    Raises:
      InputError: there is no such file, it cannot be run, a key is unknown or a value is of another type.
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
    except Exception as error:  # whatever the user's file raises is the user's to read
        raise InputError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    # A FlagValues of its own: parsing the program's other arguments is not absl's business.
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["purinet", *overrides])
        values(["purinet", *overrides])
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise InputError(f"{name}: {' '.join(str(reason).split())}") from error
    return config
