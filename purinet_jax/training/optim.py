"""Optimisers: parameter groups, and their learning rates over time.

The groups are `backbone`, `purificatory`, `promotion` (names in `oa_`) and `rectification` (`ea_`). Biases have twice
the rate of their group and no weight decay.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from purinet_jax.errors import InputError

GROUPS = ("backbone", "purificatory", "promotion", "rectification")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated; the defaults are those of the released stages 2 and 3.

    Attributes:
      name: "sgd" (momentum, weight decay added to the gradient) or "adamw" (decoupled weight decay).
      rate: the base learning rate.
      group_rates: each group's rate as a multiple of `rate`.
      decaying_groups: the groups whose rate decays; the others' is constant.
      decay: "polynomial", (1 − step/steps)^power, or "cosine", half a period down to 0.
      power: the exponent of the polynomial decay.
      warmup_steps: the rates of all groups rise linearly from 0 over this many steps.
      momentum: SGD's momentum.
      weight_decay: on everything but biases.
      clip_norm: a bound on the gradient's global norm, or 0 for none.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    rate: float = 1e-3
    group_rates: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"backbone": 1.0, "purificatory": 1.0, "promotion": 10.0, "rectification": 10.0}
    )
    decaying_groups: tuple[str, ...] = ("backbone",)
    decay: Literal["polynomial", "cosine"] = "polynomial"
    power: float = 0.9
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adamw"):
            raise InputError(f"optimizer.name: {self.name!r} is neither sgd nor adamw")
        if self.decay not in ("polynomial", "cosine"):
            raise InputError(f"optimizer.decay: {self.decay!r} is neither polynomial nor cosine")
        for key, groups in (("group_rates", self.group_rates), ("decaying_groups", self.decaying_groups)):
            for group in groups:
                if group not in GROUPS:
                    raise InputError(f"optimizer.{key}: {group!r} is none of {', '.join(GROUPS)}")
        for name in ("rate", "power", "warmup_steps", "momentum", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"optimizer.{name}: {getattr(self, name)} is not a number of at least 0")
        for group, rate in self.group_rates.items():
            if not 0 <= rate < math.inf:
                raise InputError(f"optimizer.group_rates.{group}: {rate} is not a number of at least 0")
        if self.momentum >= 1:
            raise InputError(f"optimizer.momentum: {self.momentum} is not below 1")
        missing = [group for group in GROUPS if group not in self.group_rates]
        if missing:
            raise InputError(f"optimizer.group_rates: {missing[0]} is missing")


def parameter_group(name: str) -> str:
    """Returns the group of a parameter's first name (`backbone`, `oa_convert5`, `predict1` …)."""
    if name == "backbone":
        return "backbone"
    if name.startswith("oa_"):
        return "promotion"
    if name.startswith("ea_"):
        return "rectification"
    return "purificatory"


def parameter_labels(params: Mapping[str, Any]) -> Any:
    """Returns a tree like `params` whose leaves are `<group>` or `<group>_bias`."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        group = parameter_group(path[0].key)
        return f"{group}_bias" if path[-1].key == "bias" else group

    return jax.tree_util.tree_map_with_path(label, params)


def learning_rate(config: OptimizerConfig, steps: int, group: str) -> optax.Schedule:
    """Returns the rate of a group's weights over `steps` steps."""
    rate = config.rate * config.group_rates[group]
    if group not in config.decaying_groups:
        schedule = optax.constant_schedule(rate)
    elif config.decay == "cosine":
        schedule = optax.cosine_decay_schedule(rate, steps)
    else:
        schedule = optax.polynomial_schedule(rate, 0.0, config.power, steps)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
        return lambda step: warmup(step) * schedule(step)
    return schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimiser of a run of `steps` steps."""
    if steps < 1:
        raise InputError(f"steps: {steps} is not at least 1")

    def rate(group: str, multiple: float) -> optax.GradientTransformation:
        schedule = learning_rate(config, steps, group)
        return optax.scale_by_learning_rate(lambda step: multiple * schedule(step))

    def not_biases(params: Mapping[str, Any]) -> Any:
        return jax.tree.map(lambda label: not label.endswith("_bias"), parameter_labels(params))

    decay = optax.add_decayed_weights(config.weight_decay, mask=not_biases)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    rates = {group: rate(group, 1.0) for group in GROUPS} | {f"{group}_bias": rate(group, 2.0) for group in GROUPS}
    # On one vector of all parameters, because XLA compiles a kernel for each of hundreds of tensors.
    if config.name == "sgd":
        direction = [*clip, decay, optax.flatten(optax.trace(config.momentum))]
    else:
        direction = [optax.flatten(optax.chain(*clip, optax.scale_by_adam())), decay]
    return optax.chain(*direction, optax.partition(rates, parameter_labels))
