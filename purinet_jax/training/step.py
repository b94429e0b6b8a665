"""The train step: a pure function of state and batch on one device, and the one place where it is pmapped.

One forward pass, one `jax.vjp`, three cotangents: the extractor and the purificatory pyramid follow the main and
structural losses, the promotion pyramid its own, the rectification pyramid its own two (`purnet.md` §4). The main
gradient still passes through both attentions into the extractor.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.interpreters import ad

from purinet_jax.data.superpixel_files import REGIONS
from purinet_jax.network.cpu.platform import traced_for_cpus
from purinet_jax.network.layers import averaged_over
from purinet_jax.network.model import PurNet, normalise
from purinet_jax.processes import wait_for_all
from purinet_jax.training.losses import Losses, Objective, purnet_losses, total_loss
from purinet_jax.training.optim import parameter_group
from purinet_jax.training.superpixels import grid_regions, slic_regions

AXIS = "devices"

Batch = Mapping[str, Array]
Variables = Mapping[str, Any]
# Losses that one parameter group follows, and no other; the extractor and the purificatory pyramid follow the rest.
OWN_LOSSES = {
    "promotion": ("promotion",),
    "rectification": ("rectification_saliency", "rectification_error"),
}


@flax.struct.dataclass
class TrainState:
    """All that training changes, and (static) how it is changed. One copy, whatever the number of devices."""

    step: Array
    params: Any
    batch_stats: Any
    optimizer_state: Any
    average: Any  # of the variables over the steps (exponential), or None
    model: PurNet = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    objective: Objective = flax.struct.field(pytree_node=False)
    accumulate: int = flax.struct.field(pytree_node=False, default=1)
    average_decay: float = flax.struct.field(pytree_node=False, default=0.0)
    losses: Losses = flax.struct.field(pytree_node=False, default=purnet_losses)
    freeze_statistics: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def variables(self) -> dict[str, Any]:
        """What to predict with, as `model.apply` takes it: the average of the variables where one is kept."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: PurNet,
    variables: Variables,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    accumulate: int = 1,
    average_decay: float = 0.0,
    losses: Losses = purnet_losses,
    freeze_statistics: bool = False,
) -> TrainState:
    """The state before the first step. `variables` are copied: the step donates its state's buffers.

    `losses` takes the place of `purnet_losses` where something else shall be minimised. With `freeze_statistics`
    BatchNorm normalises as in prediction, by its running statistics, which then stay as they are.
    """

    def copy() -> dict[str, Any]:
        given = {"params": dict(variables["params"]), "batch_stats": dict(variables.get("batch_stats", {}))}
        return jax.tree.map(lambda x: jnp.array(x, copy=True), given)

    start = copy()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=start["params"],
        batch_stats=start["batch_stats"],
        optimizer_state=optimizer.init(start["params"]),
        average=copy() if average_decay else None,
        model=model,
        optimizer=optimizer,
        objective=objective,
        accumulate=accumulate,
        average_decay=average_decay,
        losses=losses,
        freeze_statistics=freeze_statistics,
    )


def with_superpixels(batch: Batch, objective: Objective) -> Batch:
    """The batch with the superpixels that the objective asks for: those it came with, or made from its images here.

    About 200 are made, or `objective.max_regions` if that is fewer. "slic" needs uint8 images (`slic_regions`).
    """
    if objective.structural != "region" or objective.superpixels == "stored":
        return batch
    images, regions = batch["image"], min(REGIONS, objective.max_regions)
    if objective.superpixels == "slic":
        return {**batch, "superpixels": slic_regions(images, regions)}
    _, height, width, _ = images.shape
    return {**batch, "superpixels": jnp.broadcast_to(grid_regions(height, width, regions), images.shape[:3])}


def gradients(state: TrainState, batch_stats: Any, batch: Batch) -> tuple[Any, Any, dict[str, Array]]:
    """Each group's gradient of its own losses, the updated BatchNorm statistics, and the losses by term and level."""
    batch = with_superpixels(batch, state.objective)

    def forward(params: Any) -> tuple[tuple[Array, ...], tuple[Any, dict[str, Array]]]:
        images = normalise(batch["image"], state.model.backbone.pixel_mean, state.model.backbone.pixel_std)
        variables, train = {"params": params, "batch_stats": batch_stats}, not state.freeze_statistics
        maps, updates = state.model.apply(variables, images, train=train, mutable=["batch_stats"])
        losses = state.losses(maps, batch, state.objective)
        rest = tuple(name for name in losses if all(name not in own for own in OWN_LOSSES.values()))
        sums = tuple(
            total_loss({name: losses[name] for name in (rest if own is None else own) if name in losses})
            for own in followed
        )
        return sums, (updates.get("batch_stats", {}), losses)

    groups = {name: OWN_LOSSES.get(parameter_group(name)) for name in state.params}
    followed = tuple(dict.fromkeys(groups.values()))
    sums, pullback, (batch_stats, losses) = jax.vjp(forward, state.params, has_aux=True)
    result: dict[str, Any] = {}
    for i, own in enumerate(followed):
        # Symbolic zeros: what the other losses would add is not computed, and XLA drops the gradients not taken.
        cotangents = tuple(jnp.ones_like(x) if i == j else ad.Zero(jax.typeof(x)) for j, x in enumerate(sums))
        (gradient,) = pullback(cotangents)
        result |= {name: gradient[name] for name, theirs in groups.items() if theirs == own}
    return {name: result[name] for name in state.params}, batch_stats, losses


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """One update from one device's share of the batch.

    Args:
      state: the same on every device.
      batch: `image` [batch, height, width, 3] (uint8, or float and normalised), `mask` [batch, height, width, 1],
        `superpixels` [batch, height, width] where the objective wants stored ones. With `state.accumulate` = n, the
        batch is taken in n equal parts one after the other, and their gradients are averaged.

    Returns:
      The next state, and the metrics: each loss term by level [levels], `loss` and `gradient_norm`. Where the model
      has a device axis, gradients, BatchNorm statistics and metrics are averaged over it.
    """
    axis = averaged_over(state.model.axis_name)
    if state.accumulate == 1:
        gradient, batch_stats, losses = gradients(state, state.batch_stats, batch)
    else:
        parts = jax.tree.map(lambda x: x.reshape(state.accumulate, -1, *x.shape[1:]), dict(batch))

        def accumulate(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
            gradient, batch_stats, losses = gradients(state, carry[1], part)
            return (jax.tree.map(jnp.add, carry[0], gradient), batch_stats), losses

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        # XLA's CPU backend runs what is inside a loop in one thread and by slow convolutions: eight times as long.
        (gradient, batch_stats), losses = lax.scan(accumulate, start, parts, unroll=traced_for_cpus())
        gradient = jax.tree.map(lambda g: g / state.accumulate, gradient)
        losses = jax.tree.map(lambda x: x.mean(0), losses)
    if axis is not None:
        gradient, losses = lax.pmean((gradient, losses), axis)
    updates, optimizer_state = state.optimizer.update(gradient, state.optimizer_state, state.params)
    metrics = {**losses, "loss": total_loss(losses), "gradient_norm": optax.tree.norm(gradient)}
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if state.average_decay:
        # Early on the average forgets faster, lest it hold the first weights for thousands of steps.
        keep = jnp.minimum(state.average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update({"params": params, "batch_stats": batch_stats}, average, 1 - keep)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer_state=optimizer_state,
        average=average,
    )
    return state, metrics


def place_state(state: TrainState, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """`state` laid out as the pmapped step returns it, so that the first step compiles what all others use."""
    return place(state, devices or jax.devices())


def place(tree: Any, devices: Sequence[jax.Device], split: bool = False) -> Any:
    """Arrays, the same on all hosts, whole on each of `devices`, or with their leading axis split over them."""
    sharding = sharding_over(devices, *((AXIS,) if split else ()))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # Copied: the memory of what is donated later must be nothing else's.
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.array(x)), tree)


def sharding_over(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    """Arrays over `devices`: their leading axis split, with `AXIS`, or all of them on each device."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def place_batches(
    batches: Iterable[Mapping[str, np.ndarray]], devices: Sequence[jax.Device] | None = None, ahead: int = 2
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches on their devices, as the pmapped step takes them, `ahead` of them on their way while one is in use.

    Args:
      batches: from the input pipeline: this host's share of each, on several hosts.
      devices: those that the step runs on, of all hosts; the share is split evenly over this host's.
      ahead: how many batches to place before the first is asked for.

    Yields:
      Each batch's `index` [batch], which stays on the host, and all else as [devices, batch / devices, …].
    """
    devices = list(devices or jax.devices())
    sharding = sharding_over(devices, AXIS)
    local = sum(device.process_index == jax.process_index() for device in devices)

    def place(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Batch]:
        split = {key: x.reshape(local, -1, *x.shape[1:]) for key, x in batch.items() if key != "index"}
        placed = {key: jax.make_array_from_process_local_data(sharding, x) for key, x in split.items()}
        return batch["index"], placed

    waiting: deque[tuple[np.ndarray, Batch]] = deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def compiled_by_all(step: Step) -> Step:
    """A pmapped step that no process of several begins before all have compiled it: those that find none to exchange
    sums with give up after half a minute."""
    if jax.process_count() == 1:
        return step
    compiled: dict[tuple[int, ...], Any] = {}

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        shape = batch["image"].shape
        if shape not in compiled:
            compiled[shape] = step.lower(state, batch).compile()  # type: ignore[attr-defined]
            wait_for_all()
        return compiled[shape](state, batch)

    return run


def pmap_step(
    devices: Sequence[jax.Device] | None = None,
) -> Step:
    """`train_step` on all `devices` at once: the state has no device axis, batch and metrics lead with one.

    The model must have been built with `axis_name=AXIS`. The state is donated.
    """
    return jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, 0),
        donate_argnums=(0,),
        devices=devices,
    )
