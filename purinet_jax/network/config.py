"""The configuration of a network: what a file of weights and a training run say of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from purinet_jax.errors import InputError
from purinet_jax.network.model import ATTENTIONS, BACKBONES, PurNet, named_attentions

MOST_CHANNELS = 1024
"""The widest decoder: a file of weights that asks for more is refused before memory is reserved for it."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What `PurNet` is built from, checked.

    Attributes:
      backbone: a name in `BACKBONES`.
      channels: the width of everything between the backbone and the maps, 1 to `MOST_CHANNELS`.
      attention: some of `ATTENTIONS`, in that order; true for both and false for none are understood, too.
      scaled_promotion: as in `PurNet`.
      light: as in `PurNet`.
      context: as in `PurNet`.

    Raises:
      InputError: a setting has another type or value; the message names it.
    """

    backbone: str = "resnet50"
    channels: int = 128
    attention: tuple[str, ...] = ATTENTIONS
    scaled_promotion: bool = False
    light: bool = False
    context: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str) or self.backbone not in BACKBONES:
            raise InputError(f"model.backbone: {self.backbone!r} is none of {', '.join(BACKBONES)}")
        if type(self.channels) is not int or not 1 <= self.channels <= MOST_CHANNELS:
            raise InputError(f"model.channels: {self.channels!r} is not an integer from 1 to {MOST_CHANNELS}")
        object.__setattr__(self, "attention", named_attentions(self.attention))
        for setting in ("scaled_promotion", "light", "context"):
            if type(getattr(self, setting)) is not bool:
                raise InputError(f"model.{setting}: {getattr(self, setting)!r} is neither true nor false")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that a file's JSON or a run's `config.model` holds; settings it leaves out are the
        released network's.

        Raises:
          InputError: an unknown setting, or as the class.
        """
        unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"model.{unknown[0]}: no such setting")
        return cls(**settings)

    @classmethod
    def from_model(cls, model: PurNet) -> "ModelConfig":
        """The configuration of a network; device axis, compute dtype and `remat` are no part of it."""
        plain = model.backbone.clone(axis_name=None, dtype=jnp.float32, remat=False)
        name = next(name for name, backbone in BACKBONES.items() if backbone() == plain)
        settings = {f.name: getattr(model, f.name) for f in dataclasses.fields(cls) if f.name != "backbone"}
        return cls(name, **settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `from_dict` takes them and JSON can hold them."""
        return dataclasses.asdict(self)

    def build(self, *, axis_name: str | None = None, dtype: DTypeLike = jnp.float32, remat: bool = False) -> PurNet:
        """The network; arguments as in `PurNet`."""
        backbone: Callable[..., Any] = BACKBONES[self.backbone]
        settings = {name: value for name, value in self.to_dict().items() if name != "backbone"}
        common: dict[str, Any] = {"axis_name": axis_name, "dtype": dtype, "remat": remat}
        return PurNet(backbone=backbone(**common), **settings, **common)

    def describe(self) -> str:
        """The network in words, for messages: "light PurNet on mobilenet_v2, 32 channels, with scaled attention"."""
        attention = "with" if self.attention else "without"
        if len(self.attention) == 1:
            attention += f" {self.attention[0]}"
        if self.scaled_promotion and "promotion" in self.attention:
            attention += " scaled"
        light, context = "light " if self.light else "", " and context" if self.context else ""
        return f"{light}PurNet on {self.backbone}, {self.channels} channels, {attention} attention{context}"
