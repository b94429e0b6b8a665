"""The train step over devices, in parts, in half precision, and lowered for other platforms."""

from collections.abc import Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import shared_optimizer, shared_pmap_step, tiny_batch, tiny_model, tiny_state, tiny_variables
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from purinet_jax.network.config import ModelConfig
from purinet_jax.network.layers import BatchNorm, Conv, Norm, inverted_residual
from purinet_jax.network.model import PurNet
from purinet_jax.training.initial import draw
from purinet_jax.training.losses import Objective
from purinet_jax.training.optim import OptimizerConfig, make_optimizer
from purinet_jax.training.step import (
    AXIS,
    TrainState,
    create_state,
    gradients,
    normalise,
    place_batches,
    place_state,
    pmap_step,
    sharded_step,
    train_step,
)

STEPS = 3


def train_pmapped(devices: int, accumulate: int = 1, **options: Any) -> tuple[TrainState, dict[str, np.ndarray]]:
    chosen = jax.devices()[:devices]
    state = place_state(tiny_state(AXIS, accumulate, **options), chosen)
    step = shared_pmap_step(chosen)
    for index in range(STEPS):
        batch = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in tiny_batch(index).items()}
        state, metrics = step(state, batch)
    return state, {name: np.asarray(value).mean(0) for name, value in metrics.items()}


def assert_close(actual: Any, expected: Any, relative: float, least: int = 51) -> None:
    """Compares every tensor, relative to its norm."""
    actual_leaves, expected_leaves = jax.tree.leaves_with_path(actual), jax.tree.leaves(expected)
    assert len(actual_leaves) == len(expected_leaves) >= least
    for (path, value), reference in zip(actual_leaves, expected_leaves, strict=True):
        difference = np.linalg.norm(np.asarray(value, np.float64) - np.asarray(reference, np.float64))
        scale = np.linalg.norm(np.asarray(reference, np.float64))
        # The gradients of biases before a BatchNorm are rounding errors: they differ by about 1e-8.
        assert difference <= relative * scale + 1e-7, f"{jax.tree_util.keystr(path)}: {difference / scale}"


@pytest.fixture(scope="module")
def one_device() -> TrainState:
    return train_pmapped(1)[0]


@pytest.mark.slow
def test_four_devices_equal_one(one_device: TrainState) -> None:
    assert jax.device_count() == 4
    state, _ = train_pmapped(4)
    assert int(state.step) == STEPS
    assert_close(state.variables, one_device.variables, 1e-5)


class OneLevel(nn.Module):
    """One level of 6 channels at stride 2, with a depthwise convolution if `light`."""

    light: bool

    strides: ClassVar[tuple[int, ...]] = (2,)
    pixel_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    pixel_std: ClassVar[tuple[float, ...]] = (0.25, 0.25, 0.25)

    @nn.compact
    def __call__(self, images: jax.Array, norm: Norm = BatchNorm, remat: Any = None) -> tuple[jax.Array, ...]:
        x = jax.nn.relu(norm(name="norm0")(Conv(6, 3, 2, name="conv0")(images)))
        return (inverted_residual(x, 6, 1, 3, 1, norm, tuple("abcdef")) if self.light else x,)


def first_gradient(state: TrainState) -> Any:
    """The gradient of the first step, which is the momentum after it, as a tree like the parameters."""
    _, unravel = ravel_pytree(state.params)
    return unravel(optax.tree.get(state.optimizer_state, "trace"))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("light", [False, True], ids=["released", "light"])
def test_a_step_is_the_same_on_one_device_and_on_four_in_each_way(light: bool, accumulate: int) -> None:
    def model(axis_name: str | None) -> PurNet:
        attention = () if light else ("promotion",)
        return PurNet(OneLevel(light), 4, attention, scaled_promotion=True, light=light, axis_name=axis_name)

    def state(axis_name: str | None = None) -> TrainState:
        return create_state(model(axis_name), variables, optimizer, objective, accumulate)

    optimizer, batch = shared_optimizer(OptimizerConfig(rate=0.01), 100), tiny_batch(0)
    objective = Objective("none" if light else "region", superpixels="grid", max_regions=16)
    variables = draw(jax.eval_shape(model(None).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))), seed=0)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    over, same = PartitionSpec(AXIS), PartitionSpec()
    in_shards = jax.shard_map(train_step, mesh=mesh, in_specs=(same, over), out_specs=(same, same))
    pmapped, losses = pmap_step()(
        place_state(state(AXIS)), jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    )
    one = jax.jit(train_step)(state(), batch)
    ways = {
        "pmap": (pmapped, jax.tree.map(lambda x: x[0], losses)),
        "shard_map": jax.jit(in_shards)(state(AXIS), batch),
        "jit": sharded_step(mesh)(state(), batch),
    }
    for way, (after, losses) in ways.items():
        for name in ("params", "batch_stats"):
            assert_close(getattr(after, name), getattr(one[0], name), 1e-5, least=10)
        assert_close(first_gradient(after), first_gradient(one[0]), 1e-5, least=10)
        for name, value in losses.items():
            np.testing.assert_allclose(value, one[1][name], rtol=1e-5, err_msg=f"{way}: {name}")


def test_a_sharded_step_needs_automatic_axes() -> None:
    with pytest.raises(ValueError, match="needs AxisType"):
        sharded_step(jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Explicit,)))


@pytest.mark.slow
def test_the_state_has_no_device_axis_and_is_donated() -> None:
    state = place_state(tiny_state(AXIS))
    shapes = jax.tree.map(jnp.shape, state.variables)
    batch = {key: value.reshape(4, 2, *value.shape[1:]) for key, value in tiny_batch(0).items()}
    after, metrics = shared_pmap_step()(state, batch)
    assert jax.tree.map(jnp.shape, after.variables) == shapes
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert metrics["main"].shape == (4, 2)


def test_creating_a_state_leaves_its_variables_alone() -> None:
    variables, like = tiny_variables(), tiny_state(AXIS)
    state = place_state(create_state(like.model, variables, like.optimizer, like.objective))
    batch = {key: value.reshape(4, 2, *value.shape[1:]) for key, value in tiny_batch(0).items()}
    shared_pmap_step()(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
def test_two_parts_average_the_gradients_of_both() -> None:
    batch = tiny_batch(0)
    state = tiny_state(accumulate=2, attention=())
    after, metrics = jax.jit(train_step)(state, batch)
    first, second = ({key: value[start::2] for key, value in batch.items()} for start in (0, 1))
    compute = jax.jit(gradients)
    gradient1, statistics, losses1 = compute(state, state.batch_stats, first)
    gradient2, statistics, losses2 = compute(state, statistics, second)
    gradient = jax.tree.map(lambda a, b: (a + b) / 2, gradient1, gradient2)
    updates, _ = state.optimizer.update(gradient, state.optimizer_state, state.params)
    expected = jax.tree.map(jnp.add, state.params, updates)
    assert_close({"p": after.params, "s": after.batch_stats}, {"p": expected, "s": statistics}, 1e-5)
    np.testing.assert_allclose(metrics["main"], (losses1["main"] + losses2["main"]) / 2, rtol=1e-5)


@pytest.mark.slow
def test_each_group_follows_its_own_losses() -> None:
    state, batch = tiny_state(), tiny_batch(0)
    model = state.model

    def losses(params: Any) -> dict[str, jax.Array]:
        from purinet_jax.training.losses import purnet_losses

        images = normalise(jnp.asarray(batch["image"]), (0.5,) * 3, (0.25,) * 3)
        maps, _ = model.apply({**state.variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return purnet_losses(maps, batch, state.objective)

    followed = {
        "predict1": ("main", "structural"),
        "backbone": ("main", "structural"),
        "oa_convert1": ("promotion",),
        "ea_predict2_g": ("rectification_saliency", "rectification_error"),
    }
    gradient, _, _ = jax.jit(gradients)(state, state.batch_stats, batch)
    # The full gradient of each term is a row of the Jacobian.
    rows = jax.jit(jax.jacrev(lambda p: {term: loss.sum() for term, loss in losses(p).items()}))(state.params)
    for name, terms in followed.items():
        expected = jax.tree.map(lambda *parts: sum(parts), *(rows[term] for term in terms))
        for value, reference in zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(value, reference, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_custom_loss_is_followed_by_all_parameters_except_the_attentions() -> None:
    def losses(maps: Any, batch: Any, objective: Any) -> dict[str, Any]:
        return {"squares": jnp.stack([jnp.square(jax.nn.sigmoid(x)).mean() for x in maps.saliency])}

    def total(params: Any) -> Any:
        images = normalise(batch["image"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        variables = {"params": params, "batch_stats": state.batch_stats}
        maps, _ = state.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return losses(maps, None, None)["squares"].sum()

    state, batch = tiny_state(attention=(), losses=losses), tiny_batch(0, 2)
    gradient, _, found = jax.jit(lambda state, batch: gradients(state, state.batch_stats, batch))(state, batch)
    assert found.keys() == {"squares"}
    expected = jax.jit(jax.grad(total))(state.params)
    # The pyramids of the attentions, which this network does not use, get zeros.
    for value, reference in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(gradient["convert1"]["0"]["kernel"]).max()) > 0


def test_clipping_bounds_the_update() -> None:
    options = {"clip_norm": 1e-3, "weight_decay": 0.0}
    state = tiny_state(optimizer=options, attention=())
    clipped, metrics = jax.jit(train_step)(state, tiny_batch(0))
    assert metrics["gradient_norm"] > 1e-2
    pairs = zip(jax.tree.leaves(clipped.params), jax.tree.leaves(state.params), strict=True)
    moved = np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in pairs))
    # rate × norm, times at least the smallest and at most the largest group's multiple, doubled for biases
    assert 0.01 * 1e-3 * 0.99 < moved < 0.01 * 1e-3 * 20 * 1.01


@pytest.mark.slow
def test_rematerialisation_gives_the_same_gradients() -> None:
    compute = jax.jit(gradients)
    results = []
    for remat in (False, True):
        model = tiny_model(attention=(), remat=remat)
        state = create_state(model, tiny_variables(), shared_optimizer(OptimizerConfig(), 100), Objective("none"))
        results.append(compute(state, state.batch_stats, tiny_batch(0)))
        lowered = jax.make_jaxpr(gradients)(state, state.batch_stats, tiny_batch(0))
        assert ("remat" in str(lowered)) == remat
    (gradient, statistics, losses), (expected, *others) = results[1], results[0]
    leaves = zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected), strict=True)
    for (path, value), reference in leaves:
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    for value, reference in zip(jax.tree.leaves((statistics, losses)), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-6)


def test_a_step_refuses_padded_batches_and_pmap_a_model_without_its_axis() -> None:
    state = tiny_state()
    with pytest.raises(ValueError, match="the batch has `valid`"):
        jax.eval_shape(train_step, state, tiny_batch(0) | {"valid": np.ones(2, bool)})
    with pytest.raises(ValueError, match="axis_name is None, the pmapped step needs 'devices'"):
        pmap_step(jax.devices()[:1]).lower(state, {key: x[None] for key, x in tiny_batch(0).items()})


@pytest.mark.slow
def test_losses_fall_in_bfloat16_with_float32_state() -> None:
    state = tiny_state(dtype=jnp.bfloat16)
    step = jax.jit(train_step)
    losses = []
    for _ in range(12):
        state, metrics = step(state, tiny_batch(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {jnp.dtype("float32")}


def test_normalise_takes_uint8_and_leaves_floats() -> None:
    images = jnp.asarray([[[[0, 255, 51]]]], jnp.uint8)
    np.testing.assert_allclose(normalise(images, (0.5, 0.5, 0.0), (0.5, 0.25, 0.1)), [[[[-1, 2, 2]]]], rtol=1e-6)
    floats = jnp.full((1, 1, 1, 3), 7.0)
    assert normalise(floats, (0.5,) * 3, (0.5,) * 3) is floats


def abstract_step() -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """The released network's state and a batch of two 320² images, as shapes."""
    model = ModelConfig("resnet50").build()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    optimizer = make_optimizer(OptimizerConfig(), 100)
    objective = Objective(superpixels="files")
    state = jax.eval_shape(lambda variables: create_state(model, variables, optimizer, objective), variables)
    shapes = {"image": ((2, 320, 320, 3), jnp.uint8), "mask": ((2, 320, 320, 1), jnp.uint8)}
    shapes["superpixels"] = ((2, 320, 320), jnp.int32)
    return state, {key: jax.ShapeDtypeStruct(*value) for key, value in shapes.items()}


PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture
def no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces the forms for accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")


@pytest.mark.slow
def test_the_train_step_lowers_for_cuda_and_tpu(no_cpu: None) -> None:
    exported = jax.export.export(jax.jit(train_step), platforms=PLATFORMS)(*abstract_step())
    assert exported.platforms == PLATFORMS
    assert exported.out_avals
    assert exported.mlir_module().count("stablehlo.convolution") > 300


def test_the_pmapped_step_lowers_for_cuda_and_tpu(no_cpu: None) -> None:
    state = place_state(tiny_state(AXIS))
    batch = {key: value.reshape(4, 2, *value.shape[1:]) for key, value in tiny_batch(0).items()}
    exported = jax.export.export(jax.jit(pmap_step()), platforms=PLATFORMS)(state, batch)
    assert exported.platforms == PLATFORMS
    assert exported.nr_devices == 4


def test_prediction_lowers_for_cuda_and_tpu(no_cpu: None) -> None:
    from purinet_jax.network.inference import saliency_maps

    state, batch = abstract_step()
    predict = jax.jit(lambda variables, images: saliency_maps(state.model, variables, images))
    exported = jax.export.export(predict, platforms=PLATFORMS)(state.variables, batch["image"])
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape[:3] == (2, 320, 320)


def test_a_reversed_kernel_appears_in_the_compiled_program() -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_transpose(x, kernel, (2, 2), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (y**2).sum()

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((4, 4, 8, 8)), jnp.ones((1, 10, 10, 8))).compile().as_text()
    assert "rhs_reversal" in text


@pytest.mark.slow
def test_the_average_follows_the_variables_and_is_used_for_prediction() -> None:
    plain = tiny_state()
    state = create_state(plain.model, plain.variables, plain.optimizer, plain.objective, average_decay=0.5)
    step = jax.jit(train_step)
    expected = plain.variables
    for index in range(2):
        state, _ = step(state, tiny_batch(index))
        keep = min(0.5, (1 + index) / (10 + index))
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda old, new, keep=keep: keep * old + (1 - keep) * new, expected, now)
    assert_close(state.variables, expected, 1e-5)
    with pytest.raises(AssertionError):
        assert_close(state.variables, now, 1e-5)


@pytest.mark.slow
def test_frozen_statistics_are_used_and_not_updated() -> None:
    state = tiny_state().replace(freeze_statistics=True)  # type: ignore[attr-defined]
    batch = tiny_batch(0)
    _, statistics, losses = jax.jit(gradients)(state, state.batch_stats, batch)
    assert_close(statistics, state.batch_stats, 0)
    images = normalise(batch["image"], state.model.backbone.pixel_mean, state.model.backbone.pixel_std)
    maps = jax.jit(state.model.apply)(state.variables, images)  # as in prediction
    expected = state.losses(maps, batch, state.objective)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_batches_are_placed_ahead_and_in_order() -> None:
    taken: list[int] = []

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for index in range(5):
            taken.append(index)
            yield {"index": np.full(8, index, np.int32), **tiny_batch(index)}

    placed = place_batches(batches())
    index, batch = next(placed)
    assert taken == [0, 1, 2]  # one in use, two ahead
    assert index.tolist() == [0] * 8
    rest = [int(index[0]) for index, _ in placed]
    assert rest == [1, 2, 3, 4]
    assert batch.keys() == {"image", "mask", "superpixels"}
    for name, value in tiny_batch(0).items():
        assert batch[name].shape == (4, 2, *value.shape[1:])
        assert len(batch[name].sharding.device_set) == 4
        np.testing.assert_array_equal(np.asarray(batch[name]).reshape(value.shape), value)


@pytest.mark.slow
def test_placed_batches_give_the_same_state(one_device: TrainState) -> None:
    state, step = place_state(tiny_state(AXIS)), shared_pmap_step()
    batches = ({"index": np.arange(8, dtype=np.int32), **tiny_batch(index)} for index in range(STEPS))
    for _, batch in place_batches(batches):
        state, _ = step(state, batch)
    assert_close(state.variables, one_device.variables, 1e-5)
