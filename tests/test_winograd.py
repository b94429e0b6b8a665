"""Convolutions by minimal filtering, and their gradients, equal direct convolutions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purinet_jax.network.cpu.convolution import direct_convolution, unit_stride_convolution
from purinet_jax.network.cpu.platform import for_all_platforms
from purinet_jax.network.cpu.winograd import Padding, minimal_filtering

SAME: Padding = ((1, 1), (1, 1))


@pytest.mark.parametrize(("outputs", "taps"), [(2, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3), (1, 5)])
def test_minimal_filtering_is_correlation(outputs: int, taps: int) -> None:
    rng = np.random.default_rng(0)
    signal, kernel = rng.normal(size=outputs + taps - 1), rng.normal(size=taps)
    after, for_kernel, before = minimal_filtering(outputs, taps)
    filtered = after @ ((for_kernel @ kernel) * (before @ signal))
    np.testing.assert_allclose(filtered, np.correlate(signal, kernel, "valid"), rtol=1e-12, atol=1e-12)


def test_more_points_than_there_are_raise() -> None:
    with pytest.raises(ValueError, match=r"F\(5, 3\) needs 6 points, there are 5"):
        minimal_filtering(5, 3)


@pytest.mark.parametrize(
    ("shape", "side", "features", "dilation", "padding", "convolutions"),
    [
        ((2, 40, 24, 64), 3, 72, 1, SAME, 6),
        ((1, 41, 33, 64), 3, 64, 2, ((2, 2), (2, 2)), 5),  # 21 and 20 rows: tiles of three
        ((1, 20, 52, 64), 3, 64, 4, ((4, 4), (4, 4)), 5),  # five rows each: tiles of three
        ((1, 34, 33, 64), 2, 128, 1, ((0, 0), (0, 0)), 4),  # as `transposed_convolution` has it
    ],
)
def test_minimal_filtering_equals_the_direct_convolution(
    shape: tuple[int, ...], side: int, features: int, dilation: int, padding: Padding, convolutions: int
) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(side, side, shape[-1], features)) / (side * shape[-1] ** 0.5)
    x = rng.normal(size=shape)

    def by_rows(x: Any, kernel: Any) -> Any:
        return unit_stride_convolution(x, kernel, dilation, padding)

    def direct(x: Any, kernel: Any) -> Any:
        return direct_convolution(x, kernel, 1, dilation, padding)

    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        with jax.enable_x64(dtype is np.float64):
            inputs = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
            assert str(jax.make_jaxpr(by_rows)(*inputs)).count("conv_general_dilated[") == convolutions
            (actual, backward), (expected, expected_backward) = jax.vjp(by_rows, *inputs), jax.vjp(direct, *inputs)
            gradient = jnp.asarray(rng.normal(size=expected.shape), dtype)
            for found, wanted in zip(
                (actual, *backward(gradient)), (expected, *expected_backward(gradient)), strict=True
            ):
                assert found.dtype == dtype
                np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("shape", "features", "dtype"),
    [
        ((1, 40, 40, 48), 64, jnp.float32),  # few channels
        ((1, 20, 20, 64), 64, jnp.float32),  # few pixels
        ((1, 40, 40, 64), 64, jnp.bfloat16),  # few digits
    ],
)
def test_direct_convolution_is_kept(shape: tuple[int, ...], features: int, dtype: Any) -> None:
    x, kernel = jnp.zeros(shape, dtype), jnp.zeros((3, 3, shape[-1], features), dtype)
    jaxpr = jax.make_jaxpr(lambda x, kernel: unit_stride_convolution(x, kernel, 1, SAME))(x, kernel)
    assert str(jaxpr).count("conv_general_dilated[") == 1


def test_programs_for_all_platforms_have_direct_convolutions() -> None:
    function = jax.jit(lambda x, kernel: unit_stride_convolution(x, kernel, 1, SAME))
    arguments = jnp.zeros((1, 40, 40, 64)), jnp.zeros((3, 3, 64, 64))
    for _ in range(2):  # traces inside and outside the context are not shared
        assert function.lower(*arguments).as_text().count("stablehlo.convolution(") == 6
        with for_all_platforms():
            assert function.lower(*arguments).as_text().count("stablehlo.convolution(") == 1
