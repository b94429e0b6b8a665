"""Variables under the names and in the layouts of other projects: the authors' PurNet, torchvision's `resnet50` and
`vgg16`, the PyTorch ports of EfficientNet-Lite, and Keras' MobileNetV2.

A network's own shapes say which tensors there must be, so only the names and axes of single leaves are listed here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from purinet_jax.errors import InputError
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.network.config import ModelConfig
from purinet_jax.network.model import ATTENTIONS
from purinet_jax.weights.variables import (
    COUNT,
    BackboneConfig,
    Config,
    Path,
    authors_modules,
    check_tensors,
    first_names,
    flattened,
    nested,
    variable_shapes,
)

# For each leaf, PyTorch's name for it, and our axes in PyTorch's order (None: the same).
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
    "depthwise_kernel": "kernel",  # before Keras 3, depthwise_kernel
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}

# How the names of the decoder start, and those of the attentions.
_DECODER = re.compile(r"((oa|ea|ea_e)_)?(pre_)?(convert|feature_upscore|predict)\d")
_ATTENTION_PREFIXES = {"promotion": "oa_", "rectification": "ea_"}
_LITE_CLASSIFIER = re.compile(r"(_conv_head|_bn1|_fc)\.")
# How the names of a backbone's tensors start, the authors', torchvision's, Keras' and the PyTorch ports', and those of
# the classifier after it. The ports differ in the index of their last block.
_BACKBONE_NAMES = {
    "resnet50": (re.compile(r"layer\d\.|conv1\.|bn1\."), re.compile(r"fc\.")),
    "vgg16": (re.compile(r"features\."), re.compile(r"classifier\.")),
    "mobilenet_v2": (
        re.compile(r"(bn_)?Conv1[./]|expanded_conv|block_\d"),
        re.compile(r"(Conv_1|Conv_1_bn|global_average_pooling2d|predictions|Logits)/"),
    ),
    "efficientnet_lite2": (re.compile(r"_blocks\.20\."), _LITE_CLASSIFIER),
    "efficientnet_lite0": (re.compile(r"_blocks\.15\."), _LITE_CLASSIFIER),
}
# torchvision's names of the authors' `layer0`
_STEM = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}

_Foreign = tuple[str, tuple[int, ...] | None]
"""What a leaf is called elsewhere, and our axes in the order there (None: the same)."""


def to_authors(variables: Mapping[str, Any], batches_tracked: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Returns the tensors under the authors' names and in PyTorch's layouts, as `load_state_dict` takes them.

    Convolutions are [out, in, height, width], transposed ones [in, out, height, width]. Each BatchNorm gets its
    `num_batches_tracked`, an int64 scalar: the one in `batches_tracked`, or 0.
    """
    tensors = {}
    for path, array in flattened(variables).items():
        name, axes = _authors_name(path)
        tensors[name] = np.array(array if axes is None else array.transpose(axes), order="C")
        if path[-1] == "mean":
            count = f"{name.removesuffix('running_mean')}{COUNT}"
            tensors[count] = np.array((batches_tracked or {}).get(count, 0), np.int64)
    return tensors


def from_authors(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], ModelConfig]:
    """Returns the variables and configuration of the authors' tensors, whose names tell backbone and stage.

    The backbone is ResNet-50, or another one of this package written by `to_authors`. Floating tensors of any width
    become float32. `num_batches_tracked` is optional and left out. The promotion attention has no tensors, so
    `scaled_promotion` is the released network's: False.

    Raises:
      InputError: no backbone is recognised, or tensors are missing, surplus or of another shape.
    """
    backbone = _backbone_of(tensors)
    if backbone is None:
        raise InputError("holds no backbone's tensors")
    if not is_authors(tensors):
        raise InputError("holds a backbone alone, no PurNet")
    laterals = (tensor for name, tensor in tensors.items() if re.fullmatch(r"convert\d\.0\.weight", name))
    channels = next((tensor.shape[0] for tensor in laterals if tensor.ndim == 4), 128)
    attention = [name for name in ATTENTIONS if any(x.startswith(_ATTENTION_PREFIXES[name]) for x in tensors)]
    config = ModelConfig(backbone, channels, tuple(attention))
    return _from_named(tensors, config, _authors_name), config


def from_backbone(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], BackboneConfig, list[str]]:
    """Returns the backbone's variables of a classification network, their configuration, and the classifier's names.

    `tensors` are torchvision's `resnet50` or `vgg16`, EfficientNet-Lite's PyTorch ports, Keras' MobileNetV2
    (`Conv1/kernel`; before Keras 3, `Conv1/kernel:0`), or a backbone under the authors' names. The variables are
    below `backbone`; the classifier's tensors are left out.

    Raises:
      InputError: no backbone is recognised, or tensors are missing, surplus or of another shape.
    """
    backbone = _backbone_of(tensors)
    if backbone is None:
        raise InputError(f"holds no tensors of {', '.join(BACKBONES)} (starts with {first_names(tensors)})")
    config = BackboneConfig(backbone)
    dropped = [name for name in tensors if _BACKBONE_NAMES[backbone][1].match(name)]
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    rename = _authors_name
    if any("/" in name for name in kept):
        kept, rename = {_keras_3_name(name): tensor for name, tensor in kept.items()}, _keras_name
    elif "conv1.weight" in kept:
        rename = _torchvision_name
    return _from_named(kept, config, rename), config, dropped


def is_authors(names: Iterable[str]) -> bool:
    """Whether tensors of the authors' decoder are among the names."""
    return any(map(_DECODER.match, names))


def torchvision_to_authors(name: str) -> str:
    """torchvision's name of a tensor → the authors'."""
    return _replace_prefix(name, _STEM)


def _authors_name(path: Path) -> _Foreign:
    """A leaf in the authors' file: (params, convert5, 0, kernel) is convert5.0.weight."""
    name, axes = _PYTORCH_LEAVES[path[-1]]
    return ".".join([*authors_modules(path), name]), axes


def _torchvision_name(path: Path) -> _Foreign:
    """A leaf in torchvision's file, where the authors' `layer0` has no name of its own."""
    name, axes = _authors_name(path)
    return _replace_prefix(name, {authors: theirs for theirs, authors in _STEM.items()}), axes


def _keras_name(path: Path) -> _Foreign:
    """A leaf in a Keras file: (params, backbone, bn_Conv1, scale) is bn_Conv1/gamma. The layouts are ours."""
    return "/".join([*authors_modules(path), _KERAS_LEAVES[path[-1]]]), None


def _keras_3_name(name: str) -> str:
    """The name in Keras 3 of a tensor from an earlier version: x/depthwise_kernel:0 → x/kernel."""
    return name.removesuffix(":0").replace("/depthwise_kernel", "/kernel")


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)


def _backbone_of(names: Iterable[str]) -> str | None:
    """The backbone whose tensors are among the names."""
    names = list(names)
    return next((name for name, (start, _) in _BACKBONE_NAMES.items() if any(map(start.match, names))), None)


def _from_named(
    tensors: Mapping[str, np.ndarray], config: Config, rename: Callable[[Path], _Foreign]
) -> dict[str, Any]:
    """The variables of a network, each under the name that `rename` gives its path."""
    shapes = {}
    for path, shape in variable_shapes(config).items():
        name, axes = rename(path)
        shapes[name] = shape if axes is None else tuple(shape[axis] for axis in axes)
        count = f"{name.removesuffix('running_mean')}{COUNT}"
        if name.endswith(".running_mean") and count in tensors:  # older files have none
            shapes[count] = ()
    check_tensors(tensors, shapes)
    leaves = {}
    for path in variable_shapes(config):
        name, axes = rename(path)
        array = tensors[name] if axes is None else tensors[name].transpose(np.argsort(axes))
        leaves[path] = np.array(array, np.float32, order="C")
    return nested(leaves)
