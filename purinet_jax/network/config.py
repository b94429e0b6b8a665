"""The configuration of a network, as weight files and training runs store it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from purinet_jax.errors import InputError
from purinet_jax.files import one_line
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.network.model import ATTENTIONS, PurNet

MOST_CHANNELS = 1024
"""The widest decoder. A weight file that asks for more is refused before memory is reserved for it."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What `PurNet` is built from, validated.

    Attributes:
      backbone: a name in `BACKBONES`.
      channels: the width of everything between the backbone and the maps, 1 to `MOST_CHANNELS`.
      attention: some of `ATTENTIONS`; true for both and false for none are accepted, too.
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
        named: Any = self.attention
        if isinstance(named, bool):  # as earlier versions wrote it
            named = ATTENTIONS if named else ()
        if not isinstance(named, list | tuple) or any(name not in ATTENTIONS for name in named):
            known = " and ".join(ATTENTIONS)
            raise InputError(f"model.attention: {named!r} is not a list of {known}, of one, or empty")
        object.__setattr__(self, "attention", tuple(name for name in ATTENTIONS if name in named))
        for setting in ("scaled_promotion", "light", "context"):
            if type(getattr(self, setting)) is not bool:
                raise InputError(f"model.{setting}: {getattr(self, setting)!r} is neither true nor false")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "ModelConfig":
        """The configuration in a file's JSON or a run's `config.model`; missing settings are the released network's.

        Raises:
          InputError: an unknown setting, or as the class.
        """
        unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"model.{one_line(unknown[0])}: no such setting")
        return cls(**settings)

    @classmethod
    def from_model(cls, model: PurNet) -> "ModelConfig":
        """The configuration of a network, which does not include its device axis, dtype and `remat`."""
        settings = {field.name: getattr(model, field.name) for field in dataclasses.fields(cls)}
        settings["backbone"] = next(name for name, backbone in BACKBONES.items() if backbone() == model.backbone)
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `from_dict` takes them and JSON can hold them."""
        return dataclasses.asdict(self)

    def build(self, *, axis_name: str | None = None, dtype: DTypeLike = jnp.float32, remat: bool = False) -> PurNet:
        """The network; arguments as in `PurNet`."""
        settings = self.to_dict() | {"backbone": BACKBONES[self.backbone]()}
        return PurNet(**settings, axis_name=axis_name, dtype=dtype, remat=remat)

    def describe(self) -> str:
        """The network in words, for messages: "light PurNet on mobilenet_v2, 32 channels, with scaled attention"."""
        attention = "with" if self.attention else "without"
        if len(self.attention) == 1:
            attention += f" {self.attention[0]}"
        if self.scaled_promotion and "promotion" in self.attention:
            attention += " scaled"
        light, context = "light " if self.light else "", " and context" if self.context else ""
        return f"{light}PurNet on {self.backbone}, {self.channels} channels, {attention} attention{context}"
