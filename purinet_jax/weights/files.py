"""Weights in files: load, save and convert them."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.files import check_output_file
from purinet_jax.network.config import ModelConfig
from purinet_jax.weights.convert import from_authors, from_backbone, is_authors, to_authors, torchvision_to_authors
from purinet_jax.weights.shipped import weights_path
from purinet_jax.weights.tensor_files import read_metadata, read_tensors, write_tensors
from purinet_jax.weights.untrusted import named, printable
from purinet_jax.weights.variables import (
    COUNT,
    Config,
    authors_modules,
    check_tensors,
    config_from_dict,
    flattened,
    nested,
    variable_shapes,
)

FORMAT = "purinet_jax 1"


def load_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Config]:
    """Loads variables and configuration of whatever `convert_file` takes; of a training run, its best checkpoint.

    Raises:
      InputError: nothing is there, or it cannot be used; the message names the path.
    """
    path = weights_path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    source = _read(path)
    return source.variables, source.config


def load_variables(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Config]:
    """Loads variables and configuration from a file that `save_variables` wrote.

    Returns:
      `{"params": …, "batch_stats": …}` of NumPy float32 arrays, and the configuration: a `ModelConfig`, or a
      `BackboneConfig` for a backbone alone, whose variables are below `backbone`, too.

    Raises:
      InputError: the file is not this package's, or its tensors are not the network's; the message names it.
    """
    source = _read_own(Path(path))
    return source.variables, source.config


def save_variables(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    config: Config,
    batches_tracked: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    half: bool = False,
) -> None:
    """Writes variables and their configuration to `.safetensors` under flat keys like `params/convert5/0/kernel`.

    Args:
      path: the file.
      variables: `{"params": …, "batch_stats": …}`; other collections are left out.
      config: of the network or backbone.
      batches_tracked: `num_batches_tracked` of an authors' file under its names, for `to_authors`.
      size: side in pixels of the images that the network is for (`stored_size`).
      half: store numbers as float16; they are read as float32.

    Raises:
      InputError: the variables are not the configuration's, a number is too large for float16, or the file cannot be
        written; the message names the file.
    """
    with named(path):
        tensors = {"/".join(keys): array for keys, array in flattened(variables).items()}
        if half:
            tensors = {name: _halved(name, array) for name, array in tensors.items()}
        for name, count in (batches_tracked or {}).items():
            tensors[f"{COUNT}/{name.removesuffix(f'.{COUNT}')}"] = np.asarray(count)
        check_tensors(tensors, _shapes_in_file(config, tensors))
    metadata = {"format": FORMAT, "model": json.dumps(config.to_dict(), sort_keys=True)}
    write_tensors(path, tensors, metadata | ({} if size is None else {"size": str(size)}))


def stored_size(path: str | os.PathLike[str]) -> int | None:
    """The side in pixels of the images that a network is for: of a run's folder its training size, of a file what it
    says, `None` if it says nothing.

    Raises:
      InputError: the file cannot be read; the message names it.
    """
    if os.path.isdir(path):
        from purinet_jax.weights.runs import training_size  # Orbax takes a second to import

        return training_size(path)
    text = read_metadata(path).get("size", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    names: Literal["purinet", "authors"] = "purinet",
    half: bool = False,
    size: int | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Reads weights of any supported project and writes them to another file.

    Args:
      source: `.pth`, `.pt`, `.tar`, `.npz` or `.safetensors`: this package's variables, the authors' PurNet, or a
        backbone as `from_backbone` takes it; the folder of a training run; or the name of one of the package's
        networks.
      destination: `.safetensors`.
      names: "purinet" writes this package's variables with their configuration, "authors" the authors' names.
      half: store this package's variables as float16.
      size: side in pixels of the images that the network is for; by default what `source` says.
      overwrite: replace an existing file.

    Returns:
      What was found, written and left out, as lines of text.

    Raises:
      InputError: one of the two files cannot be used, or `destination` exists; the message names it.
    """
    source, destination = weights_path(source), Path(destination)
    if destination.suffix.lower() != ".safetensors":
        raise InputError(f"{destination}: tensors are written to .safetensors")
    if names == "authors" and (half or size is not None):
        raise InputError("half: the authors' tensors are float32" if half else "size: the authors' files do not say it")
    check_output_file(destination, overwrite)
    variables, config, counts, dropped, kind = _read(source)
    leaves = flattened(variables)
    if names == "authors":
        renamed = to_authors(variables, counts)
        write_tensors(destination, renamed)
        written = len(renamed)
    else:
        save_variables(destination, variables, config, counts, size=size or stored_size(source), half=half)
        written = len(leaves) + len(counts)
    parameters = sum(leaf.size for path, leaf in leaves.items() if path[0] == "params")
    lines = [
        f"{source}: {kind}: {config.describe()}, {parameters:,} parameters",
        f"{destination}: {written:,} tensors written, {names} names",
    ]
    if dropped:
        lines.append(f"left out, not used by the backbone: {', '.join(map(printable, dropped))}")
    if names == "authors" and isinstance(config, ModelConfig) and config.scaled_promotion:
        lines.append("the authors' names do not say that the promotion attention is the scaled one")
    return "\n".join(lines)


class _Source(NamedTuple):
    """What a file or a run's folder holds; `counts` are PyTorch's `num_batches_tracked` under the authors' names."""

    variables: dict[str, Any]
    config: Config
    counts: dict[str, np.ndarray]
    dropped: list[str]
    kind: str


def _read(path: Path) -> _Source:
    """Reads a file of any kind, told by its tensors' names, or a training run's folder."""
    if path.is_dir():
        from purinet_jax.weights.runs import load_checkpoint  # Orbax takes a second to import

        return _Source(*load_checkpoint(path), {}, [], "a training run's best checkpoint")
    if {"format", "model"} <= read_metadata(path).keys():
        return _read_own(path)
    tensors = read_tensors(path)
    with named(path):
        counts = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{COUNT}")}
        if is_authors(tensors):
            return _Source(*from_authors(tensors), counts, [], "the authors' names")
        variables, config, dropped = from_backbone(tensors)
        counts = {torchvision_to_authors(name): count for name, count in counts.items() if name not in dropped}
        return _Source(variables, config, counts, dropped, "a classification network's backbone")


def _read_own(path: Path) -> _Source:
    metadata = read_metadata(path)
    with named(path):
        if not {"format", "model"} <= metadata.keys():
            raise InputError("holds no purinet_jax variables (`purinet convert` makes them from other weights)")
        if metadata["format"] != FORMAT:
            raise InputError(f"has the format {metadata['format']!r}, not {FORMAT!r}")
        try:
            settings = json.loads(metadata["model"])
        except (ValueError, RecursionError) as error:
            raise InputError(f"its model configuration is not JSON ({error})") from error
        if not isinstance(settings, dict):
            raise InputError("its model configuration is not a table")
        config = config_from_dict(settings)
        tensors = read_tensors(path)
        check_tensors(tensors, _shapes_in_file(config, tensors))
    leaves, counts = {}, {}
    for name, tensor in tensors.items():
        collection, *rest = name.split("/")
        if collection == COUNT:
            counts[f"{rest[0]}.{COUNT}"] = tensor
        else:
            leaves[(collection, *rest)] = tensor.astype(np.float32, copy=False)
    return _Source(nested(leaves), config, counts, [], "variables of this package")


def _shapes_in_file(config: Config, present: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of what this package's file holds, with the counts that are `present`."""
    variables = variable_shapes(config)
    counts = {f"{COUNT}/{'.'.join(authors_modules(keys))}" for keys in variables if keys[-1] == "mean"}
    return {"/".join(keys): shape for keys, shape in variables.items()} | {
        name: () for name in present if name in counts
    }


def _halved(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{name}: reaches {np.abs(array).max():g}, more than float16 holds")
    return half
