"""Layers against plain NumPy loops and against XLA's own convolutions."""

import contextlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from purinet_jax.errors import InputError
from purinet_jax.network.cpu.convolution import convolution, direct_convolution, unit_stride_convolution
from purinet_jax.network.cpu.depthwise import depthwise_convolution, same_padding
from purinet_jax.network.cpu.platform import for_all_platforms
from purinet_jax.network.cpu.pooling import max_pool
from purinet_jax.network.cpu.upsampling import bilinear_upsampling, transposed_convolution
from purinet_jax.network.layers import (
    CBP,
    BatchNorm,
    Conv,
    DepthwiseConv,
    PredictionHead,
    PReLU,
    Upsample,
    bilinear_kernel,
    not_rematerialised,
    rematerialised,
)
from purinet_jax.training.initial import draw

close = np.testing.assert_allclose


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(dict(tree), sep="/").items()}


def abstract_init(module: nn.Module, *arguments: Any) -> tuple[Any, Any]:
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *arguments))


def output_and_gradients(function: Any, gradient: np.ndarray, *arguments: np.ndarray) -> tuple[Any, ...]:
    @jax.jit
    def compute(*arguments: Any) -> tuple[Any, ...]:
        y, pullback = jax.vjp(function, *arguments)
        return y, *pullback(gradient)

    return compute(*arguments)


def scatter_transposed_convolution(
    x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PyTorch's conv_transpose2d: each input pixel adds its kernel, stride apart; the border is cropped."""
    batch, height, width, _ = x.shape
    size, crop = 2 * stride, stride // 2
    y = np.zeros((batch, (height + 1) * stride, (width + 1) * stride, kernel.shape[-1]))
    padded_gradient = np.pad(gradient, ((0, 0), (crop, crop), (crop, crop), (0, 0)))
    assert padded_gradient.shape == y.shape
    x_gradient, kernel_gradient = np.zeros(x.shape), np.zeros(kernel.shape)
    for row in range(height):
        for column in range(width):
            at = np.s_[:, row * stride : row * stride + size, column * stride : column * stride + size]
            y[at] += np.einsum("bi,klio->bklo", x[:, row, column], kernel)
            x_gradient[:, row, column] = np.einsum("bklo,klio->bi", padded_gradient[at], kernel)
            kernel_gradient += np.einsum("bi,bklo->klio", x[:, row, column], padded_gradient[at])
    return y[:, crop:-crop, crop:-crop], x_gradient, kernel_gradient


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_transposed_convolution_and_its_gradients_equal_the_scatter_form(stride: int) -> None:
    height, width = 3, 5
    x = normal(0, 2, height, width, 3)
    kernel = normal(1, 2 * stride, 2 * stride, 3, 2)
    gradient = normal(2, 2, height * stride, width * stride, 2)
    actual = output_and_gradients(lambda x, kernel: transposed_convolution(x, kernel, stride), gradient, x, kernel)
    expected = scatter_transposed_convolution(x, kernel, gradient, stride)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        close(a, e, rtol=1e-4, atol=1e-4)


def test_transposed_convolution_of_a_single_pixel_is_the_middle_of_its_kernel() -> None:
    kernel = normal(0, 8, 8, 1, 1)
    y = transposed_convolution(jnp.full((1, 1, 1, 1), 2.0), kernel, 4)
    close(y[0], 2 * kernel[2:6, 2:6, 0], rtol=1e-6)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_bilinear_kernel_interpolates_a_constant_exactly_in_the_interior(stride: int) -> None:
    x = np.full((1, 4, 3, 2), 0.75, np.float32)
    kernel = bilinear_kernel(2 * stride, 2)
    y = transposed_convolution(x, kernel, stride)
    border = stride // 2
    close(y[:, border:-border, border:-border], 0.75, rtol=1e-6)
    assert np.all(np.asarray(y[:, 0]) < 0.75)


def test_bilinear_kernel_values_and_channel_diagonal() -> None:
    # One axis of size 4 is 1/4, 3/4, 3/4, 1/4.
    axis = np.array([0.25, 0.75, 0.75, 0.25])
    kernel = bilinear_kernel(4, 3)
    assert kernel.dtype == np.float32
    assert kernel.shape == (4, 4, 3, 3)
    for i in range(3):
        for j in range(3):
            close(kernel[:, :, i, j], np.outer(axis, axis) if i == j else 0)
    close(bilinear_kernel(3, 1)[:, :, 0, 0], np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]))


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 3])
def test_unit_stride_convolution_and_its_gradients_equal_xlas(size: int, dilation: int) -> None:
    padding = ((1, 2), (0, 3))
    x, kernel = normal(0, 2, 11, 13, 3), normal(1, size, size, 3, 4)

    lost = dilation * (size - 1)
    gradient = normal(2, 2, 14 - lost, 16 - lost, 4)
    expected = output_and_gradients(
        lambda x, kernel: direct_convolution(x, kernel, 1, dilation, padding), gradient, x, kernel
    )
    actual = output_and_gradients(
        lambda x, kernel: unit_stride_convolution(x, kernel, dilation, padding), gradient, x, kernel
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        close(a, e, rtol=1e-4, atol=1e-4)


def test_strided_1x1_convolution_is_a_product_on_cpus_only() -> None:
    """XLA's GPU backend aborts on the gradient of the product of every second pixel."""
    x, kernel, gradient = normal(0, 2, 5, 6, 3), normal(1, 1, 1, 3, 4), normal(2, 2, 3, 3, 4)
    strided = partial(convolution, stride=2)
    results = []
    for context, expected in ((contextlib.nullcontext(), "dot_general"), (for_all_platforms(), "conv_general_dilated")):
        with context:
            jaxpr = str(jax.make_jaxpr(strided)(x, kernel))
            assert [name for name in ("dot_general", "conv_general_dilated") if f"{name}[" in jaxpr] == [expected]
            results.append(output_and_gradients(strided, gradient, x, kernel))
    for product, direct in zip(*results, strict=True):
        close(product, direct, rtol=1e-5, atol=1e-5)


def test_unit_stride_convolution_under_vmap_and_jit_equals_one_at_a_time() -> None:
    padding = ((1, 1), (1, 1))
    x, kernels = normal(0, 3, 2, 5, 6, 2), normal(1, 3, 3, 3, 2, 2)

    def loss(x: Any, kernel: Any) -> Any:
        return jnp.sin(unit_stride_convolution(x, kernel, 1, padding)).sum()

    def xla_loss(x: Any, kernel: Any) -> Any:
        return jnp.sin(direct_convolution(x, kernel, 1, 1, padding)).sum()

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(x, kernels)
    one_by_one = jax.jit(jax.value_and_grad(xla_loss, (0, 1)))
    for i in range(3):
        value, gradient = one_by_one(x[i], kernels[i])
        close(values[i], value, rtol=1e-4, atol=1e-4)
        for a, e in zip(gradients, gradient, strict=True):
            close(a[i], e, rtol=1e-4, atol=1e-4)


def test_unit_stride_convolution_computes_in_bfloat16() -> None:
    padding = ((1, 1), (1, 1))
    x, kernel, gradient = normal(0, 1, 6, 6, 2), normal(1, 3, 3, 2, 2), normal(2, 1, 6, 6, 2)

    def function(x: Any, kernel: Any) -> Any:
        return unit_stride_convolution(x, kernel, 1, padding)

    narrow = output_and_gradients(
        function, gradient.astype(jnp.bfloat16), x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    )
    wide = output_and_gradients(function, gradient, x, kernel)
    for a, e in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        close(np.asarray(a, np.float32), e, rtol=0.05, atol=0.15)


def naive_max_pool(
    x: np.ndarray, window: int, stride: int, padding: int, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    batch, height, width, channels = x.shape
    y, x_gradient = np.zeros(gradient.shape), np.zeros(x.shape)
    for b, row, column, c in np.ndindex(*gradient.shape):
        rows = range(max(row * stride - padding, 0), min(row * stride - padding + window, height))
        columns = range(max(column * stride - padding, 0), min(column * stride - padding + window, width))
        best = max(((i, j) for i in rows for j in columns), key=lambda at: x[b, at[0], at[1], c])
        y[b, row, column, c] = x[b, best[0], best[1], c]
        x_gradient[b, best[0], best[1], c] += gradient[b, row, column, c]
    assert (batch, channels) == (y.shape[0], y.shape[-1])
    return y, x_gradient


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0)])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (6, 5), (1, 2)])
def test_max_pool_and_its_gradient_equal_the_naive_form(
    window: int, stride: int, padding: int, height: int, width: int
) -> None:
    x = np.abs(normal(0, 2, height, width, 2))
    gradient = normal(1, 2, -(-height // 2), -(-width // 2), 2)
    actual = output_and_gradients(lambda x: max_pool(x, window, stride, padding), gradient, x)
    for a, e in zip(actual, naive_max_pool(x, window, stride, padding, gradient), strict=True):
        assert a.shape == e.shape
        close(a, e, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (4, 5), (1, 2)])
def test_depthwise_convolution_equals_the_naive_form_with_same_padding(height: int, width: int, stride: int) -> None:
    x, kernel = normal(0, 2, height, width, 3), normal(1, 3, 3, 3, 1)
    # TensorFlow's SAME: a stride of 2 on an even side pads one pixel, after the side; all others one on each.
    before = [0 if stride == 2 and side % 2 == 0 else 1 for side in (height, width)]
    expected = np.zeros((2, -(-height // stride), -(-width // stride), 3))
    for b, row, column, c in np.ndindex(*expected.shape):
        for i, j in np.ndindex(3, 3):
            source_row, source_column = row * stride + i - before[0], column * stride + j - before[1]
            if 0 <= source_row < height and 0 <= source_column < width:
                expected[b, row, column, c] += x[b, source_row, source_column, c] * kernel[i, j, c, 0]
    actual = jax.jit(depthwise_convolution, static_argnums=2)(x, kernel, stride)
    assert actual.shape == expected.shape
    close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [
        (8, 3, 1, (1, 1)),
        (7, 3, 1, (1, 1)),
        (8, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (1, 3, 2, (1, 1)),
        (8, 2, 1, (0, 1)),
        (9, 1, 2, (0, 0)),
    ],
)
def test_same_padding_puts_the_odd_pixel_after(side: int, window: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(side, window, stride) == expected


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5)])
def test_strided_pointwise_conv_is_a_matrix_product_of_every_second_pixel(height: int, width: int) -> None:
    x, kernel, bias = normal(0, 2, height, width, 3), normal(1, 1, 1, 3, 4), normal(2, 4)
    actual = Conv(4, 1, 2).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.einsum("bhwi,io->bhwo", x[:, ::2, ::2], kernel[0, 0]) + bias
    assert actual.shape == (2, -(-height // 2), -(-width // 2), 4)
    close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (3, 2, 2), (7, 2, 1)])
def test_conv_pads_as_pytorch_networks_do(size: int, stride: int, dilation: int) -> None:
    x, kernel, bias = normal(0, 1, 7, 10, 2), normal(1, size, size, 2, 3), normal(2, 3)
    pad = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((1, -(-7 // stride), -(-10 // stride), 3)) + bias
    for row, column in np.ndindex(*expected.shape[1:3]):
        top, left = row * stride, column * stride
        reach = dilation * (size - 1) + 1
        window = padded[0, top : top + reach : dilation, left : left + reach : dilation]
        expected[0, row, column] += np.einsum("kli,klio->o", window, kernel)
    actual = Conv(3, size, stride, dilation).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert actual.shape == expected.shape
    close(actual, expected, rtol=1e-4, atol=1e-4)


def test_conv_starts_from_he_normal_weights_and_zero_biases() -> None:
    params = Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    close(params["kernel"].std(), np.sqrt(2 / (9 * 32)), rtol=0.03)
    assert abs(params["kernel"].mean()) < 2e-3
    assert not params["bias"].any()
    _, without = abstract_init(Conv(4, 3, use_bias=False), jnp.zeros((1, 4, 4, 2)))
    assert shapes(without["params"]) == {"kernel": (3, 3, 2, 4)}


def test_initial_tensors_depend_on_their_path_and_the_seed_alone() -> None:
    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.float32)

    network = {"params": {"a": {"kernel": leaf(3, 3, 32, 64), "bias": leaf(64)}, "b": {"kernel": leaf(3, 3, 32, 64)}}}
    variables = draw(network, seed=3)["params"]
    alone = draw({"params": {"a": {"kernel": leaf(3, 3, 32, 64)}}}, seed=3)["params"]
    np.testing.assert_array_equal(alone["a"]["kernel"], variables["a"]["kernel"])
    for other in (variables["b"], draw(network, seed=4)["params"]["a"]):
        assert abs(np.corrcoef(np.ravel(other["kernel"]), np.ravel(variables["a"]["kernel"]))[0, 1]) < 0.03
    depthwise = draw({"depthwise_kernel": leaf(5, 5, 400, 1)}, seed=0)["depthwise_kernel"]
    for kernel, fan_in in ((variables["a"]["kernel"], 9 * 32), (depthwise, 25)):
        close(kernel.var(), 2 / fan_in, rtol=0.05)
        close(kernel.mean(), 0, atol=4 * np.sqrt(2 / fan_in / kernel.size))
        assert kernel.dtype == jnp.float32
    with pytest.raises(InputError, match="params/a/gain: no initial values for this name; known are kernel"):
        draw({"params": {"a": {"gain": leaf(1)}}}, seed=0)


@pytest.mark.parametrize("layer", [CBP(4, (3, 1), 2), DepthwiseConv(3, 1)], ids=["cbp", "depthwise"])
def test_drawn_tensors_are_those_that_the_layers_start_from(layer: nn.Module) -> None:
    x = jnp.zeros((1, 4, 4, 4))
    by_layers, drawn = layer.init(jax.random.key(0), x), draw(abstract_init(layer, x)[1], seed=0)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(drawn), jax.tree.leaves(by_layers), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if path[-1].key not in ("kernel", "depthwise_kernel"):
            np.testing.assert_array_equal(ours, theirs)


def test_conv_computes_in_the_dtype_of_its_input_and_keeps_float32_parameters() -> None:
    y, variables = abstract_init(Conv(4), jnp.zeros((1, 4, 4, 2), jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert y.dtype == jnp.bfloat16


@pytest.fixture
def batchnorm_variables() -> dict[str, dict[str, np.ndarray]]:
    return {
        "params": {"scale": normal(10, 3), "bias": normal(11, 3)},
        "batch_stats": {"mean": normal(12, 3), "var": np.abs(normal(13, 3)) + 0.5},
    }


def test_batchnorm_normalises_by_the_batch_and_keeps_the_unbiased_variance(batchnorm_variables: Any) -> None:
    x = 3 * normal(0, 2, 3, 2, 3) + 1
    y, updated = BatchNorm(momentum=0.8, train=True).apply(batchnorm_variables, x, mutable=["batch_stats"])
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    scale, bias = batchnorm_variables["params"]["scale"], batchnorm_variables["params"]["bias"]
    close(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    before, after = batchnorm_variables["batch_stats"], updated["batch_stats"]
    close(after["mean"], 0.8 * before["mean"] + 0.2 * mean, rtol=1e-5)
    close(after["var"], 0.8 * before["var"] + 0.2 * var * 12 / 11, rtol=1e-5)


def test_batchnorm_momentum_is_pytorchs_one_tenth_at_first(batchnorm_variables: Any) -> None:
    x = normal(0, 2, 3, 2, 3)
    _, updated = BatchNorm(train=True).apply(batchnorm_variables, x, mutable=["batch_stats"])
    close(
        updated["batch_stats"]["var"],
        0.9 * batchnorm_variables["batch_stats"]["var"] + 0.1 * x.var((0, 1, 2), ddof=1),
        rtol=1e-5,
    )


def test_batchnorm_of_a_large_mean_keeps_its_digits() -> None:
    x = normal(0, 2, 8, 8, 1) + 1000
    variables = BatchNorm().init(jax.random.key(0), x)
    y, _ = BatchNorm(train=True).apply(variables, x, mutable=["batch_stats"])
    wide = x.astype(np.float64)
    close(y, (wide - wide.mean()) / wide.std(), atol=2e-3)


def test_batchnorm_evaluates_with_the_running_statistics_and_leaves_them(batchnorm_variables: Any) -> None:
    x = normal(0, 2, 3, 2, 3)
    y, updated = BatchNorm(epsilon=0.1).apply(batchnorm_variables, x, mutable=["batch_stats"])
    params, statistics = batchnorm_variables["params"], batchnorm_variables["batch_stats"]
    normalised = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 0.1)
    close(y, normalised * params["scale"] + params["bias"], rtol=1e-4, atol=1e-5)
    for name, value in statistics.items():
        close(updated.get("batch_stats", statistics)[name], value)


def test_batchnorm_init_starts_from_mean_zero_and_variance_one_for_any_input() -> None:
    norm = BatchNorm(train=True, axis_name="devices")
    variables = norm.init(jax.random.key(0), normal(0, 2, 3, 2, 3) + 7)
    assert not variables["batch_stats"]["mean"].any()
    close(variables["batch_stats"]["var"], 1)
    close(variables["params"]["scale"], 1)
    assert not variables["params"]["bias"].any()


def test_batchnorm_with_an_axis_and_its_gradient_equal_those_of_the_full_batch(batchnorm_variables: Any) -> None:
    x, gradient = normal(0, 4, 3, 2, 3) * np.arange(1, 5)[:, None, None, None], normal(1, 4, 3, 2, 3)
    x = x.astype(np.float32)

    def apply(x: Any, axis_name: str | None) -> Any:
        return BatchNorm(train=True, axis_name=axis_name).apply(batchnorm_variables, x, mutable=["batch_stats"])

    def full(x: Any) -> Any:
        y, updated = apply(x, None)
        return (y * gradient).sum(), (y, updated["batch_stats"])

    def split(x: Any) -> Any:
        parts = x.reshape(2, 2, *x.shape[1:])
        y, updated = jax.vmap(lambda part: apply(part, "devices"), axis_name="devices")(parts)
        return (y.reshape(x.shape) * gradient).sum(), (y.reshape(x.shape), updated["batch_stats"])

    (_, (expected, statistics)), expected_gradient = jax.jit(jax.value_and_grad(full, has_aux=True))(x)
    (_, (actual, split_statistics)), actual_gradient = jax.jit(jax.value_and_grad(split, has_aux=True))(x)
    close(actual, expected, rtol=1e-4, atol=1e-5)
    close(actual_gradient, expected_gradient, rtol=1e-3, atol=1e-5)
    for name, value in statistics.items():
        close(split_statistics[name], np.stack([value, value]), rtol=1e-5)


def test_batchnorm_keeps_float32_statistics_in_bfloat16(batchnorm_variables: Any) -> None:
    x = normal(0, 2, 8, 8, 3).astype(jnp.bfloat16)
    y, updated = BatchNorm(train=True).apply(batchnorm_variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    mean = updated["batch_stats"]["mean"]
    assert mean.dtype == jnp.float32
    expected = 0.9 * batchnorm_variables["batch_stats"]["mean"] + 0.1 * x.astype(np.float32).mean((0, 1, 2))
    close(mean, expected, rtol=1e-5, atol=1e-6)


def test_batchnorm_shifts_in_float32_and_rounds_once() -> None:
    x = jnp.array([100, 100.5], jnp.bfloat16).reshape(1, 1, 2, 1)
    y, _ = BatchNorm(train=True).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y.astype(np.float32).ravel(), [-1, 1], atol=0.01)


def test_a_rematerialised_batchnorm_averages_over_devices_no_more_often(batchnorm_variables: Any) -> None:
    counts = []
    for remat in (not_rematerialised, rematerialised):
        norm = remat(BatchNorm)(train=True, axis_name="devices")

        def loss(x: jax.Array, norm: nn.Module = norm) -> jax.Array:
            y: Any = norm.apply(batchnorm_variables, x, mutable=["batch_stats"])[0]
            return jnp.square(y).sum()

        mapped = jax.pmap(jax.grad(loss), axis_name="devices", devices=jax.devices()[:2])
        counts.append(str(jax.make_jaxpr(mapped)(jnp.ones((2, 1, 4, 4, 3)))).count("psum"))
    assert counts[1] == counts[0] > 0


def test_second_derivatives_of_depthwise_convolutions_exist() -> None:
    x, kernel = jax.random.normal(jax.random.key(0), (1, 6, 6, 2)), jnp.ones((3, 3, 2, 1))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.square(jax.grad(lambda x: jnp.square(depthwise_convolution(x, kernel, 1)).sum() / 2)(x)).sum() / 2

    # The gradient is linear, AᵀA x, and AᵀA symmetric, so that of half its square is AᵀA AᵀA x.
    twice = jax.vjp(lambda x: depthwise_convolution(x, kernel, 1), x)
    expected = x
    for _ in range(2):
        expected = twice[1](depthwise_convolution(expected, kernel, 1))[0]
    np.testing.assert_allclose(jax.jit(jax.grad(norm))(x), expected, rtol=1e-4)


def test_prelu_scales_only_what_is_negative_with_one_slope() -> None:
    x = jnp.array([[-2.0, -0.5, 0.0, 3.0]])
    variables = PReLU().init(jax.random.key(0), x)
    assert shapes(variables["params"]) == {"slope": (1,)}
    close(PReLU().apply(variables, x), [[-0.5, -0.125, 0, 3]])
    slope_gradient = jax.grad(lambda v: PReLU().apply(v, x).sum())(variables)["params"]["slope"]
    close(slope_gradient, [-2.5])
    assert PReLU().apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def block(name: str, size: int, inputs: int, channels: int) -> dict[str, tuple[int, ...]]:
    first = int(name)
    return {
        f"{first}/kernel": (size, size, inputs, channels),
        f"{first}/bias": (channels,),
        f"{first + 1}/scale": (channels,),
        f"{first + 1}/bias": (channels,),
        f"{first + 2}/slope": (1,),
    }


def test_cbp_numbers_its_layers_as_the_authors_sequences_do() -> None:
    module = CBP(4, (3, 3, 1), upsample=2)
    y, variables = abstract_init(module, jnp.zeros((2, 5, 6, 3)))
    assert y.shape == (2, 10, 12, 4)
    assert shapes(variables["params"]) == {
        **block("0", 3, 3, 4),
        **block("3", 3, 4, 4),
        **block("6", 1, 4, 4),
        "9/transposed_kernel": (4, 4, 4, 4),
    }


def test_upsample_starts_bilinear() -> None:
    x = normal(0, 1, 3, 4, 2)
    y, variables = Upsample(4).init_with_output(jax.random.key(0), x)
    close(variables["params"]["transposed_kernel"], bilinear_kernel(8, 2))
    close(y, transposed_convolution(x, bilinear_kernel(8, 2), 4), rtol=1e-6)
    # Input pixel i lies at output coordinate 4·i + 1.5.
    close(y[0, 5, 5, 0], bilinear_at(x[0, :, :, 0], (5 - 1.5) / 4, (5 - 1.5) / 4), rtol=1e-5)
    close(y[0, 4, 9, 1], bilinear_at(x[0, :, :, 1], (4 - 1.5) / 4, (9 - 1.5) / 4), rtol=1e-5)


def bilinear_at(x: np.ndarray, row: float, column: float) -> float:
    i, j = int(row), int(column)
    a, b = row - i, column - j
    top = (1 - b) * x[i, j] + b * x[i, j + 1]
    return (1 - a) * top + a * ((1 - b) * x[i + 1, j] + b * x[i + 1, j + 1])


@pytest.mark.parametrize("upsample", [True, False])
def test_prediction_head_is_cropped_to_the_images_size(upsample: bool) -> None:
    head = PredictionHead(4, 8, (37, 41) if upsample else None)
    y, variables = abstract_init(head, jnp.zeros((2, 5, 6, 3)))
    expected = {**block("0", 3, 3, 4), **block("3", 1, 4, 4), "6/kernel": (1, 1, 4, 1), "6/bias": (1,)}
    if upsample:
        expected["7/transposed_kernel"] = (16, 16, 1, 1)
    assert y.shape == ((2, 37, 41, 1) if upsample else (2, 5, 6, 1))
    assert shapes(variables["params"]) == expected


def test_cbp_keeps_float32_parameters_and_statistics_in_bfloat16() -> None:
    y, variables = abstract_init(CBP(4, (3,), upsample=2), jnp.zeros((1, 4, 4, 2), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("factor", [2, 4, 32])
def test_bilinear_upsampling_equals_interpolation_pixel_by_pixel(factor: int) -> None:
    x = normal(0, 2, 3, 5, 2)
    actual = jax.jit(bilinear_upsampling, static_argnums=1)(x, factor)
    assert actual.shape == (2, 3 * factor, 5 * factor, 2)
    for row, column in np.ndindex(3 * factor, 5 * factor):
        y = np.clip((row + 0.5) / factor - 0.5, 0, 2)
        z = np.clip((column + 0.5) / factor - 0.5, 0, 4)
        top, left = min(int(y), 1), min(int(z), 3)
        weights = np.outer([1 - (y - top), y - top], [1 - (z - left), z - left])
        expected = np.einsum("rc,brcf->bf", weights, x[:, top : top + 2, left : left + 2])
        close(actual[:, row, column], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize(("height", "width", "stride"), [(6, 8, 1), (7, 5, 1), (6, 8, 2), (7, 5, 2), (6, 5, 2)])
def test_depthwise_outputs_and_gradients_equal_the_grouped_convolutions(
    height: int, width: int, stride: int, window: int
) -> None:
    x, kernel = normal(0, 3, height, width, 4), normal(1, window, window, 4, 1)

    def grouped(x: Any, kernel: Any, stride: int) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            kernel.reshape(window, window, 1, 4),
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    gradient = normal(2, 3, -(-height // stride), -(-width // stride), 4)
    results = [
        output_and_gradients(lambda x, kernel, f=f: f(x, kernel, stride), gradient, x, kernel)
        for f in (depthwise_convolution, grouped)
    ]
    for ours, expected in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        close(ours, expected, rtol=1e-4, atol=1e-4)
