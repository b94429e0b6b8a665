"""Between this package's variables and other people's weights: names, layouts and the files they come in.

Four kinds of tensors come in: the authors' PurNet (with or without attention), torchvision's `resnet50` and
`vgg16`, and Keras' MobileNetV2; this package's variables and the authors' names go out. A network's own tree
of shapes says which tensors there have to be, so nothing is listed here but how a leaf is called and how its
axes are ordered elsewhere; what is missing, surplus or of another shape is named.

Variables are `{"params": …, "batch_stats": …}`, nested dictionaries whose keys are the authors' names split
at the dots. The extractor's stand below `backbone`, a word that their names do without.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from purinet_jax.errors import InputError
from purinet_jax.network.model import ATTENTIONS, BACKBONES, build_model, named_attentions
from purinet_jax.weights.archives import readable
from purinet_jax.weights.tensor_files import WRITABLE_SUFFIXES, read_metadata, read_tensors, write_tensors

FORMAT = "purinet_jax 1"

_COLLECTIONS = ("params", "batch_stats")
# PyTorch counts the batches that each BatchNorm has seen (an int64 scalar that inference never uses). Flax
# does not, so our files carry the counts beside the variables, for the way back.
_COUNT = "num_batches_tracked"

# Per leaf: PyTorch's name for it, and which of our axes PyTorch's are. None: as it is.
_PYTORCH_LEAVES: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "kernel": ("weight", (3, 2, 0, 1)),  # [height, width, in, out] ↔ [out, in, height, width]
    "transposed_kernel": ("weight", (2, 3, 0, 1)),  # [height, width, in, out] ↔ [in, out, height, width]
    "depthwise_kernel": ("weight", (2, 3, 0, 1)),  # [height, width, in, 1] ↔ [in, 1, height, width]
    "scale": ("weight", None),
    "slope": ("weight", None),
    "bias": ("bias", None),
    "mean": ("running_mean", None),
    "var": ("running_var", None),
}
_KERAS_LEAVES = {
    "kernel": "kernel",
    "depthwise_kernel": "depthwise_kernel",
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}

# How names begin that only PurNet's decoder has, and only its attentions.
_DECODER = re.compile(r"((oa|ea|ea_e)_)?(pre_)?(convert|feature_upscore|predict)\d")
_ATTENTIONS = {"promotion": re.compile(r"oa_"), "rectification": re.compile(r"ea_")}
# How the names of an extractor's tensors begin, the authors', torchvision's and Keras'.
_EXTRACTOR_NAMES = {
    "resnet50": re.compile(r"layer\d\.|conv1\.|bn1\."),
    "vgg16": re.compile(r"features\."),
    "mobilenet_v2": re.compile(r"(bn_)?Conv1[./]|expanded_conv|block_\d"),
    # by the number of their blocks
    "efficientnet_lite2": re.compile(r"_blocks\.20\."),
    "efficientnet_lite0": re.compile(r"_blocks\.15\."),
}
# What stands behind the extractor in a classification network.
_CLASSIFIERS = {
    "resnet50": re.compile(r"fc\."),
    "vgg16": re.compile(r"classifier\."),
    "efficientnet_lite0": re.compile(r"(_conv_head|_bn1|_fc)\."),
    "efficientnet_lite2": re.compile(r"(_conv_head|_bn1|_fc)\."),
    "mobilenet_v2": re.compile(r"(Conv_1|Conv_1_bn|global_average_pooling2d|predictions|Logits)/"),
}

# torchvision's names of what the authors call `layer0`
_STEM = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}

# Beyond this a file's claim is a mistake, or made to fill the memory.
_MOST_CHANNELS = 1024
_NAMES_IN_A_MESSAGE = 5


def load_variables(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables and model configuration of one of this package's files (`save_variables`).

    Variables are `{"params": …, "batch_stats": …}` of NumPy float32 arrays. The configuration is what
    `build_model` takes, or, for an extractor alone, `{"backbone": …, "part": "backbone"}`: its variables too
    stand below `backbone`.

    Raises InputError, naming the file, where it is none of these, or its tensors are not the model's.
    """
    variables, config, _ = _load(Path(path))
    return variables, config


def save_variables(
    path: str | os.PathLike[str],
    variables: Mapping[str, Any],
    model_config: Mapping[str, Any],
    batches_tracked: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    half: bool = False,
) -> None:
    """Write variables to `.safetensors` or `.npz` under flat keys like `params/convert5/0/kernel`.

    `model_config` goes along, so that the file says what it is. `batches_tracked` are the int64 scalars that
    an authors' file had beside them, by their names (`….num_batches_tracked`); `to_authors` gives them back.
    `size` is the side in pixels of the images that the network is for (`stored_size`). With `half`, numbers are
    stored as float16, to be read as float32 again.

    Raises InputError, naming the file, where the variables are not the configuration's, a number is too large for
    float16, or the file cannot be written.
    """
    with _about(path):
        config = _checked(model_config)
        tensors = {"/".join(keys): array for keys, array in _flatten(variables).items()}
        if half:
            tensors = {name: _halved(name, array) for name, array in tensors.items()}
        for name, count in (batches_tracked or {}).items():
            tensors[f"{_COUNT}/{name.removesuffix(f'.{_COUNT}')}"] = np.asarray(count)
        _compare(tensors, _shapes_in_file(config, tensors))
    metadata = {"format": FORMAT, "model": json.dumps(config, sort_keys=True)}
    write_tensors(path, tensors, metadata | ({} if size is None else {"size": str(size)}))


def stored_size(path: str | os.PathLike[str]) -> int | None:
    """The side in pixels of the images that a network is for: that of its training where the path is a run's folder,
    otherwise what the file says, None where that is nothing.

    Raises InputError, naming the file, where it cannot be read.
    """
    if os.path.isdir(path):
        # Here, because Orbax takes a second to import and files do without it.
        from purinet_jax.weights.runs import training_size

        return training_size(path)
    text = read_metadata(path).get("size", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def _halved(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{name}: reaches {np.abs(array).max():g}, more than float16 holds")
    return half


def to_authors(variables: Mapping[str, Any], batches_tracked: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The tensors under the authors' names and in PyTorch's layouts, as `load_state_dict` takes them.

    Convolutions are [out, in, height, width], transposed ones [in, out, height, width]. Each BatchNorm gets
    its `num_batches_tracked`, an int64 scalar: the one in `batches_tracked`, or 0.
    """
    tensors = {}
    for keys, array in _flatten(variables).items():
        name, axes = _authors_name(keys)
        tensors[name] = np.array(array if axes is None else array.transpose(axes), order="C")
        if keys[-1] == "mean":
            count = f"{name.removesuffix('running_mean')}{_COUNT}"
            tensors[count] = np.array((batches_tracked or {}).get(count, 0), np.int64)
    return tensors


def from_authors(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables and model configuration of the authors' tensors, whose extractor and stage the names
    tell.

    The extractor is ResNet-50, or another one of this package exported by `to_authors`. Floating tensors of
    any width become float32. `num_batches_tracked` may be there or not and is left out. The promotion
    attention has no tensors, so `scaled_promotion` is the released network's: False.

    Raises InputError where no extractor is recognised, or tensors are missing, surplus or of another shape.
    """
    extractor = _extractor_of(tensors)
    if extractor is None:
        raise InputError("holds no extractor's tensors")
    if not any(map(_DECODER.match, tensors)):
        raise InputError("holds an extractor alone, no PurNet")
    laterals = (tensor for name, tensor in tensors.items() if re.fullmatch(r"convert\d\.0\.weight", name))
    channels = next((tensor.shape[0] for tensor in laterals if tensor.ndim == 4), 128)
    config = _checked(
        {
            "backbone": extractor,
            "channels": channels,
            "attention": tuple(name for name in ATTENTIONS if any(map(_ATTENTIONS[name].match, tensors))),
            "scaled_promotion": False,
        }
    )
    return _from_named(tensors, config, _authors_name), config


def from_backbone(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The extractor's variables out of a classification network, and the names of what it has no use for.

    `tensors` are torchvision's `resnet50` or `vgg16`, Keras' MobileNetV2 (`Conv1/kernel`, with or without
    the ending `:0`), or an extractor under the authors' names. → variables, whose leaves stand below
    `backbone`; the configuration `{"backbone": …, "part": "backbone"}`; the names of the classifier's
    tensors, which are left out.

    Raises InputError where no extractor is recognised, or tensors are missing, surplus or of another shape.
    """
    extractor = _extractor_of(tensors)
    if extractor is None:
        raise InputError(f"holds no tensors of {', '.join(BACKBONES)} (begins with {_listed(tensors)})")
    config = {"backbone": extractor, "part": "backbone"}
    in_classifier = _CLASSIFIERS[extractor].match
    dropped = [name for name in tensors if in_classifier(name)]
    kept = {name: tensor for name, tensor in tensors.items() if not in_classifier(name)}
    if any("/" in name for name in kept):
        kept = {name.removesuffix(":0"): tensor for name, tensor in kept.items()}
        return _from_named(kept, config, _keras_name), config, dropped
    if "conv1.weight" in kept:
        return _from_named(kept, config, _torchvision_name), config, dropped
    return _from_named(kept, config, _authors_name), config, dropped


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    names: Literal["purinet", "authors"] = "purinet",
    half: bool = False,
    size: int | None = None,
) -> str:
    """Read weights of any kind known here, tell by their names which, and write them to another file.

    Args:
      source: `.pth`, `.pt`, `.tar`, `.npz` or `.safetensors`: this package's variables, the authors' PurNet,
        or an extractor as `from_backbone` takes it; or the folder of a training run.
      destination: `.safetensors` or `.npz`.
      names: "purinet" writes this package's variables with their configuration, "authors" the authors' names.
      half: store this package's variables as float16.
      size: side in pixels of the images that the network is for, as the file shall say; by default what SOURCE says.

    Returns what was found, written and left out, as lines of text.

    Raises InputError, naming the file, where one of the two cannot be used.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix.lower() not in WRITABLE_SUFFIXES:
        raise InputError(f"{destination}: tensors are written to {' or '.join(WRITABLE_SUFFIXES)}")
    if half and names == "authors":
        raise InputError("half: the authors' tensors are float32")
    if size is not None and names == "authors":
        raise InputError("size: the authors' files do not say it")
    variables, config, counts, dropped, kind = _read_any(source)

    leaves = _flatten(variables)
    if names == "authors":
        renamed = to_authors(variables, counts)
        write_tensors(destination, renamed)
        written = len(renamed)
    else:
        save_variables(destination, variables, config, counts, size=size or stored_size(source), half=half)
        written = len(leaves) + len(counts)
    parameters = sum(leaf.size for keys, leaf in leaves.items() if keys[0] == "params")
    lines = [
        f"{source}: {kind}: {describe(config)}, {parameters:,} parameters",
        f"{destination}: {written:,} tensors written, {names} names",
    ]
    if dropped:
        lines.append(f"left out, since the extractor has no use for them: {', '.join(map(readable, dropped))}")
    if names == "authors" and config.get("scaled_promotion"):
        lines.append("the authors' names do not say that the promotion attention is the scaled one")
    return "\n".join(lines)


def describe(config: Mapping[str, Any]) -> str:
    """A model configuration in words, for messages."""
    if config.get("part") == "backbone":
        return f"{config['backbone']} alone"
    attentions = named_attentions(config["attention"])
    attention = "with" if attentions else "without"
    if len(attentions) == 1:
        attention += f" {attentions[0]}"
    scaled = " scaled" if "promotion" in attentions and config.get("scaled_promotion") else ""
    light = "light " if config.get("light") else ""
    context = " and context" if config.get("context") else ""
    return (
        f"{light}PurNet on {config['backbone']}, {config['channels']} channels, {attention}{scaled} attention{context}"
    )


def load_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables and model configuration of any file that `convert_file` reads, as `load_variables` gives them; of a
    training run's folder, those of its best checkpoint.

    Raises InputError, naming the path, where nothing is there or nothing that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    variables, config, *_ = _read_any(path)
    return variables, config


class _Source(NamedTuple):
    """What a file of any known kind holds."""

    variables: dict[str, Any]
    config: dict[str, Any]
    counts: dict[str, np.ndarray]
    dropped: list[str]
    kind: str


def _read_any(source: Path) -> _Source:
    """Reads a file and tells by its tensors' names what it is; a folder is a training run's."""
    if source.is_dir():
        # Here, because Orbax takes a second to import and files do without it.
        from purinet_jax.weights.runs import load_checkpoint

        return _Source(*load_checkpoint(source), {}, [], "a training run's best checkpoint")
    if {"format", "model"} <= read_metadata(source).keys():
        return _Source(*_load(source), [], "variables of this package")
    tensors = read_tensors(source)
    with _about(source):
        counts = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{_COUNT}")}
        if any(map(_DECODER.match, tensors)):
            return _Source(*from_authors(tensors), counts, [], "the authors' names")
        variables, config, dropped = from_backbone(tensors)
        counts = {_torchvision_to_authors(name): count for name, count in counts.items() if name not in dropped}
        return _Source(variables, config, counts, dropped, "a classification network's extractor")


# Names -----------------------------------------------------------------------------------------------------


class _Foreign(NamedTuple):
    """What a leaf is called elsewhere, and which of our axes the axes there are (None: the same)."""

    name: str
    axes: tuple[int, ...] | None


def _modules(keys: Sequence[str]) -> list[str]:
    """The names of the modules that a leaf stands in, as the authors have them."""
    return list(keys[2:-1] if keys[1] == "backbone" else keys[1:-1])


def _authors_name(keys: Sequence[str]) -> _Foreign:
    """A leaf in the authors' file: (params, convert5, 0, kernel) is convert5.0.weight."""
    name, axes = _PYTORCH_LEAVES[keys[-1]]
    return _Foreign(".".join([*_modules(keys), name]), axes)


def _torchvision_name(keys: Sequence[str]) -> _Foreign:
    """A leaf in torchvision's file, where the authors' `layer0` has no name of its own."""
    name, axes = _authors_name(keys)
    for theirs, authors in _STEM.items():
        name = name.replace(authors, theirs, 1) if name.startswith(authors) else name
    return _Foreign(name, axes)


def _torchvision_to_authors(name: str) -> str:
    """torchvision's name of a tensor → the authors'."""
    for theirs, authors in _STEM.items():
        if name.startswith(theirs):
            return name.replace(theirs, authors, 1)
    return name


def _keras_name(keys: Sequence[str]) -> _Foreign:
    """A leaf in a Keras file: (params, backbone, bn_Conv1, scale) is bn_Conv1/gamma. The layouts are ours."""
    return _Foreign("/".join([*_modules(keys), _KERAS_LEAVES[keys[-1]]]), None)


def _extractor_of(tensors: Iterable[str]) -> str | None:
    """The extractor whose tensors are among the names."""
    names = list(tensors)
    found = (extractor for extractor, pattern in _EXTRACTOR_NAMES.items() if any(map(pattern.match, names)))
    return next(found, None)


# Shapes ----------------------------------------------------------------------------------------------------


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model configuration, every setting there and of its type.

    Raises InputError, naming the setting.
    """
    whole: dict[str, Any] = {
        "backbone": None,
        "channels": 128,
        "attention": ATTENTIONS,
        "scaled_promotion": False,
        "light": False,
        "context": False,
    }
    complete = {**({"backbone": None} if "part" in config else whole), **config}
    if complete["backbone"] not in list(BACKBONES):  # a list: a file may put what cannot be hashed here
        raise InputError(f"model.backbone: {complete['backbone']!r} is none of {', '.join(BACKBONES)}")
    unknown = sorted(set(complete) - ({"backbone", "part"} if "part" in config else set(whole)))
    if unknown:
        raise InputError(f"model.{readable(unknown[0])}: no such setting")
    if "part" in complete:
        if complete["part"] != "backbone":
            raise InputError(f"model.part: {complete['part']!r} is not 'backbone'")
        return complete
    channels = complete["channels"]
    if type(channels) is not int or not 1 <= channels <= _MOST_CHANNELS:
        raise InputError(f"model.channels: {channels!r} is no number from 1 to {_MOST_CHANNELS}")
    complete["attention"] = named_attentions(complete["attention"])
    for setting in ("scaled_promotion", "light", "context"):
        if type(complete[setting]) is not bool:
            raise InputError(f"model.{setting}: {complete[setting]!r} is neither true nor false")
    return complete


def _shapes(config: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every variable of the network (or extractor) that `config`, checked, describes."""
    return _traced_shapes(json.dumps(config, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _traced_shapes(config_text: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """`_shapes`, of a configuration as text: tracing a network takes a second, and text can be remembered."""
    config = json.loads(config_text)
    only_extractor = config.pop("part", None) == "backbone"
    model = build_model(config)
    module = model.backbone if only_extractor else model
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)  # shapes of variables do not depend on it
    variables = jax.eval_shape(lambda key, x: module.init(key, x, False), jax.random.key(0), images)
    below = ("backbone",) if only_extractor else ()
    return {
        (keys[0], *below, *keys[1:]): leaf.shape
        for keys, leaf in flatten_dict(variables).items()
        if keys[0] in _COLLECTIONS
    }


def _shapes_in_file(config: Mapping[str, Any], present: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of what this package's file of `config` holds, with the counts that are `present`."""
    shapes = {"/".join(keys): shape for keys, shape in _shapes(config).items()}
    counts = {f"{_COUNT}/{'.'.join(_modules(keys))}": () for keys in _shapes(config) if keys[-1] == "mean"}
    return shapes | {name: counts[name] for name in present if name in counts}


# Tensors ---------------------------------------------------------------------------------------------------


def _flatten(variables: Mapping[str, Any]) -> dict[tuple[str, ...], np.ndarray]:
    """The leaves of `params` and `batch_stats`, by path; other collections (of one apply) are left out."""
    kept = {collection: variables[collection] for collection in _COLLECTIONS if collection in variables}
    return {keys: np.asarray(leaf) for keys, leaf in flatten_dict(kept).items()}


def _unflatten(flat: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    """Variables of their leaves; both collections are there, be they empty."""
    return {collection: {} for collection in _COLLECTIONS} | unflatten_dict(dict(flat))


def _from_named(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], rename: Callable[[Sequence[str]], _Foreign]
) -> dict[str, Any]:
    """The variables that `config` asks for, each found under the name that `rename` gives its path."""
    foreign = {keys: rename(keys) for keys in _shapes(config)}
    shapes = {}
    for keys, shape in _shapes(config).items():
        name, axes = foreign[keys]
        shapes[name] = shape if axes is None else tuple(shape[axis] for axis in axes)
        if name.endswith(".running_mean"):
            count = f"{name.removesuffix('running_mean')}{_COUNT}"
            if count in tensors:  # older files have none
                shapes[count] = ()
    _compare(tensors, shapes)
    flat = {}
    for keys, (name, axes) in foreign.items():
        array = tensors[name] if axes is None else tensors[name].transpose(np.argsort(axes))
        flat[keys] = np.array(array, np.float32, order="C")
    return _unflatten(flat)


def _compare(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError, naming each tensor that is missing, surplus, misshapen or of another kind."""
    missing = [name for name in shapes if name not in tensors]
    surplus = [name for name in tensors if name not in shapes]
    misshapen = []
    for name, shape in shapes.items():
        if name in tensors:
            tensor, number = tensors[name], "an integer" if _COUNT in name else "a floating"
            if tensor.shape != shape:
                misshapen.append(f"{name}: {tensor.shape} instead of {shape}")
            elif not jnp.issubdtype(tensor.dtype, jnp.integer if _COUNT in name else jnp.floating):
                misshapen.append(f"{name}: {tensor.dtype} instead of {number} type")
    kinds = (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
    problems = [f"{len(found):,} {kind} ({_listed(found)})" for kind, found in kinds if found]
    if problems:
        raise InputError(", ".join(problems))


def _listed(names: Iterable[str]) -> str:
    """Names for a message, the first few of many."""
    names = list(names)
    more = len(names) - _NAMES_IN_A_MESSAGE
    return ", ".join(map(readable, names[:_NAMES_IN_A_MESSAGE])) + (f" and {more:,} more" if more > 0 else "")


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """One of this package's files: variables, configuration, and the counts under the authors' names."""
    metadata = read_metadata(path)
    with _about(path):
        if not {"format", "model"} <= metadata.keys():
            raise InputError("holds no purinet_jax variables (`purinet convert` makes them from other weights)")
        if metadata["format"] != FORMAT:
            raise InputError(f"has the format {metadata['format']!r}, not {FORMAT!r}")
        try:
            described = json.loads(metadata["model"])
        except (ValueError, RecursionError) as error:
            raise InputError(f"its model configuration is no JSON ({error})") from error
        if not isinstance(described, dict):
            raise InputError("its model configuration is no table")
        config = _checked(described)
        tensors = read_tensors(path)
        _compare(tensors, _shapes_in_file(config, tensors))
    flat, counts = {}, {}
    for name, tensor in tensors.items():
        collection, *rest = name.split("/")
        if collection == _COUNT:
            counts[f"{rest[0]}.{_COUNT}"] = tensor
        else:
            flat[(collection, *rest)] = tensor.astype(np.float32, copy=False)
    return _unflatten(flat), config, counts


@contextmanager
def _about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Begin the message of an InputError with the file's name, unless it does so already."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise InputError(f"{path}: {error}") from error
