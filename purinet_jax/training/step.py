"""The train step, a pure function of state and batch, and its pmapped form.

Backbone and purificatory pyramid follow the main and structural losses, the promotion and rectification pyramids their
own (paper, section IV): one forward pass, one `jax.vjp`, three cotangents. The main gradient passes through both
attentions into the backbone.
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
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad

from purinet_jax.network.cpu.platform import for_all_platforms, traced_for_cpus
from purinet_jax.network.cpu.varying import vary_alike
from purinet_jax.network.layers import averaged_over
from purinet_jax.network.model import PurNet, normalise
from purinet_jax.processes import wait_for_all
from purinet_jax.training.losses import Losses, Objective, purnet_losses, total_loss
from purinet_jax.training.optim import parameter_group
from purinet_jax.training.superpixels import REGIONS, grid_regions, slic_regions

AXIS = "devices"

Batch = Mapping[str, Array]
Variables = Mapping[str, Any]
# Losses that only one parameter group follows; the backbone and the purificatory pyramid follow the others.
OWN_LOSSES = {"promotion": ("promotion",), "rectification": ("rectification_saliency", "rectification_error")}


@flax.struct.dataclass
class TrainState:
    """What training changes, and (static) how. `average` is the exponential one of the variables over the steps."""

    step: Array
    params: Any
    batch_stats: Any
    optimizer_state: Any
    average: Any
    model: PurNet = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    objective: Objective = flax.struct.field(pytree_node=False)
    accumulate: int = flax.struct.field(pytree_node=False, default=1)
    average_decay: float = flax.struct.field(pytree_node=False, default=0.0)
    losses: Losses = flax.struct.field(pytree_node=False, default=purnet_losses)
    freeze_statistics: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to predict with, as `model.apply` takes them: their average if it is kept."""
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
    """Returns the state before the first step, with a copy of `variables`, since the step donates its state.

    A batch is computed in `accumulate` parts; with `freeze_statistics` BatchNorm normalises by its running statistics
    and leaves them as they are.
    """

    def copy() -> dict[str, Any]:
        given = {"params": dict(variables["params"]), "batch_stats": dict(variables.get("batch_stats", {}))}
        return jax.tree.map(lambda x: jnp.array(x, copy=True), given)

    start = copy()
    return TrainState(
        **start,
        step=jnp.zeros((), jnp.int32),
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
    """Returns the batch with the superpixels of the objective: about 200 per image, at most `objective.max_regions`.

    "slic" needs uint8 images.
    """
    if objective.structural != "region" or objective.superpixels == "files":
        return batch
    images, regions = batch["image"], min(REGIONS, objective.max_regions)
    if objective.superpixels == "slic":
        return {**batch, "superpixels": slic_regions(images, regions)}
    _, height, width, _ = images.shape
    return {**batch, "superpixels": jnp.broadcast_to(grid_regions(height, width, regions), images.shape[:3])}


def gradients(state: TrainState, batch_stats: Any, batch: Batch) -> tuple[Any, Any, dict[str, Array]]:
    """Returns each group's gradient of its losses, the new BatchNorm statistics, and the losses by term and level."""
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
        # With symbolic zeros the terms of the other losses are not computed, and XLA drops the gradients not taken.
        cotangents = tuple(jnp.ones_like(x) if i == j else ad.Zero(jax.typeof(x)) for j, x in enumerate(sums))
        (gradient,) = pullback(cotangents)
        result |= {name: gradient[name] for name, theirs in groups.items() if theirs == own}
    return {name: result[name] for name in state.params}, batch_stats, losses


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """Updates the state from one device's share of the batch.

    Args:
      state: the same on every device.
      batch: `image` [batch, height, width, 3] (uint8, or float and normalised), `mask` [batch, height, width, 1], and
        `superpixels` [batch, height, width] if the objective's are from files. The gradients of
        `state.accumulate` equal parts, each of every `accumulate`-th image, are averaged.

    Returns:
      The next state, and the metrics: each loss term by level [levels], `loss` and `gradient_norm`. Gradients,
      BatchNorm statistics and metrics are averaged over the model's device axis, if it has one; with one, this is what
      `jax.pmap` and `jax.shard_map` run, without one what `jax.jit` runs, on a batch that may be sharded.

    Raises:
      ValueError: the batch has `valid`, as those of `evaluation_batches`.
    """
    if "valid" in batch:
        raise ValueError("the batch has `valid`; a train step takes full batches only")
    axis = averaged_over(state.model.axis_name, batch["image"])
    # Otherwise the gradients under `jax.shard_map` would be sums over the devices, elsewhere each device's own.
    local = state.replace(  # type: ignore[attr-defined]
        params=jax.tree.map(lambda x: vary_alike(x, batch["image"])[0], state.params)
    )
    if state.accumulate == 1:
        gradient, batch_stats, losses = gradients(local, state.batch_stats, batch)
    else:
        # Every `accumulate`-th image, so that the parts are the same however the batch is split over devices.
        parts = jax.tree.map(lambda x: x.reshape(-1, state.accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

        def accumulate(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], dict[str, Array]]:
            gradient, batch_stats, losses = gradients(local, carry[1], part)
            return (jax.tree.map(jnp.add, carry[0], gradient), batch_stats), losses

        start = (jax.tree.map(jnp.zeros_like, local.params), state.batch_stats)
        # Unrolled, because XLA's CPU backend runs a loop's body in one thread with slow convolutions.
        (gradient, batch_stats), losses = lax.scan(accumulate, start, parts, unroll=traced_for_cpus())
        gradient = jax.tree.map(lambda g: g / state.accumulate, gradient)
        losses = jax.tree.map(lambda x: x.mean(0), losses)
    if axis is not None:
        gradient, losses = lax.pmean((gradient, losses), axis)
    updates, optimizer_state = state.optimizer.update(gradient, state.optimizer_state, state.params)
    metrics = {**losses, "loss": total_loss(losses), "gradient_norm": jnp.linalg.norm(ravel_pytree(gradient)[0])}
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if state.average_decay:
        # A shorter average in the first steps, so that it does not keep the initial weights for thousands of them.
        keep = jnp.minimum(state.average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update({"params": params, "batch_stats": batch_stats}, average, 1 - keep)
    state = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1, params=params, batch_stats=batch_stats, optimizer_state=optimizer_state, average=average
    )
    return state, metrics


def place_state(state: TrainState, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Returns `state` with the sharding that the pmapped step returns, so that the step is compiled once.

    It may share memory with `state`, which must not be used after the step has donated it.
    """
    return place(state, devices or jax.devices())


def place(tree: Any, devices: Sequence[jax.Device], split: bool = False) -> Any:
    """Puts arrays, the same on all hosts, on each of `devices`, or splits their leading axis over them."""
    sharding = sharding_over(devices, *((AXIS,) if split else ()))
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    # Copies, because the step donates them.
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.array(x)), tree)


def sharding_over(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    """Returns the sharding over `devices`: split along the leading axis, with `AXIS`, or replicated."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def place_batches(
    batches: Iterable[Mapping[str, np.ndarray]], devices: Sequence[jax.Device] | None = None, ahead: int = 2
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Puts batches on the devices of the pmapped step, `ahead` of them before they are needed.

    Args:
      batches: from the input pipeline; on several hosts, this host's share of each.
      devices: those of all hosts.
      ahead: how many batches are transferred while one is in use.

    Yields:
      Each batch's `index` [batch], which stays on the host, and the rest as [devices, batch / devices, …].
    """
    devices = list(devices or jax.devices())
    sharding = sharding_over(devices, AXIS)
    local = sum(device.process_index == jax.process_index() for device in devices)
    waiting: deque[tuple[np.ndarray, Batch]] = deque()
    for batch in batches:
        split = {key: x.reshape(local, -1, *x.shape[1:]) for key, x in batch.items() if key != "index"}
        placed = {key: jax.make_array_from_process_local_data(sharding, x) for key, x in split.items()}
        waiting.append((batch["index"], placed))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def compiled_by_all(step: Step) -> Step:
    """Returns a pmapped step that starts once all processes have compiled it, since a sum over them waits for half a
    minute only."""
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


def pmap_step(devices: Sequence[jax.Device] | None = None) -> Step:
    """Returns `train_step` over all `devices`; batch and metrics have a leading device axis, the state (donated) none.

    The step raises ValueError if the model was not built with `axis_name=AXIS`: each device would train its own.
    """
    return jax.pmap(
        _step_over_axis, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), donate_argnums=(0,), devices=devices
    )


def _step_over_axis(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    if state.model.axis_name != AXIS:
        raise ValueError(f"the model's axis_name is {state.model.axis_name!r}, the pmapped step needs {AXIS!r}")
    return train_step(state, batch)


def sharded_step(mesh: jax.sharding.Mesh) -> Step:
    """Returns `train_step` under `jit`: the batch [batch, …] is split over the first axis of `mesh`, the state
    (donated) and the metrics are replicated.

    The model must have been built without `axis_name`. The partitioner needs axes of type `Auto`:
    `jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))`.

    Raises:
      ValueError: the mesh has axes of other types.
    """
    automatic = jax.sharding.AxisType.Auto
    if any(kind != automatic for kind in mesh.axis_types):
        raise ValueError(f"the mesh's axes are {mesh.axis_types}, the train step needs AxisType.Auto")
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        # The partitioner takes a quarter of an hour for the convolutions that are written out for CPUs.
        with for_all_platforms():
            return train_step(state, batch)

    return jax.jit(step, in_shardings=(replicated, split), out_shardings=(replicated, replicated), donate_argnums=0)
