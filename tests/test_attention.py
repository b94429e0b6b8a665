"""The two attentions against NumPy and against what must hold for any features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purinet_jax.network.attention import promotion_attention, rectification_attention

SHAPE = (2, 3, 5, 4)


def features(seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("scaled", [False, True])
def test_promotion_attention_equals_two_softmaxes_image_by_image(scaled: bool) -> None:
    x = features().astype(np.float64)
    actual = promotion_attention(features(), scaled)
    for image, attention in zip(x, np.asarray(actual), strict=True):
        channel = softmax(image.mean((0, 1)))
        for c in range(4):
            expected = softmax(image[:, :, c]) * channel[c] * (3 * 5 * 4 if scaled else 1)
            expected = np.minimum(expected, 10) if scaled else expected
            np.testing.assert_allclose(attention[:, :, c], expected, rtol=1e-4, atol=1e-7)


def test_released_promotion_attention_sums_to_one_over_space_and_channels() -> None:
    attention = promotion_attention(features())
    np.testing.assert_allclose(attention.sum((1, 2, 3)), 1, rtol=1e-5)
    channel = jax.nn.softmax(features().mean((1, 2)), axis=-1)
    np.testing.assert_allclose(attention.sum((1, 2)), channel, rtol=1e-5)
    assert (attention > 0).all()


def test_scaled_promotion_attention_has_mean_one_as_far_as_its_bound_allows() -> None:
    mild = features() / 3
    attention = promotion_attention(mild, scaled=True)
    np.testing.assert_allclose(attention.mean((1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(attention, 60 * promotion_attention(mild), rtol=1e-5)
    assert promotion_attention(features(), scaled=True).max() == 10


@pytest.mark.parametrize(("scaled", "expected"), [(False, 1 / 60), (True, 1.0)])
def test_promotion_attention_of_constant_features_is_constant(scaled: bool, expected: float) -> None:
    attention = promotion_attention(jnp.full(SHAPE, 2.5), scaled)
    np.testing.assert_allclose(attention, expected, rtol=1e-5)


def test_promotion_attention_depends_on_no_other_image() -> None:
    x = features()
    both = promotion_attention(x)
    np.testing.assert_allclose(promotion_attention(x[1:]), both[1:], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_promotion_attention_of_huge_features_and_its_gradient_are_finite(scaled: bool) -> None:
    gradient = jax.grad(lambda x: jnp.square(promotion_attention(x, scaled)).sum())(1e4 * features())
    assert np.isfinite(promotion_attention(1e4 * features(), scaled)).all()
    assert np.isfinite(gradient).all()


def test_promotion_attention_in_bfloat16_is_computed_in_float32() -> None:
    narrow = jnp.asarray(features(), jnp.bfloat16)
    attention = promotion_attention(narrow)
    assert attention.dtype == jnp.bfloat16
    expected = promotion_attention(narrow.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(attention, np.float32), np.asarray(expected, np.float32))


def test_rectification_attention_is_the_tanh_of_what_the_error_features_differ_by() -> None:
    appearance, error = features(0), features(1)
    attention = rectification_attention(appearance, error)
    np.testing.assert_allclose(attention, np.tanh(error - appearance), rtol=1e-5, atol=1e-6)
    assert (jnp.abs(attention) <= 1).all()
    assert attention.min() < 0 < attention.max()


def test_rectification_attention_of_equal_features_is_zero_and_of_opposite_arguments_opposite() -> None:
    appearance, error = features(0), features(1)
    assert not rectification_attention(error, error).any()
    np.testing.assert_allclose(
        rectification_attention(appearance, error), -rectification_attention(error, appearance), rtol=1e-6
    )


def test_rectification_attention_keeps_bfloat16() -> None:
    attention = rectification_attention(jnp.asarray(features(0), jnp.bfloat16), jnp.asarray(features(1), jnp.bfloat16))
    assert attention.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(attention, np.float32), np.tanh(features(1) - features(0)), atol=0.05)


def test_promotion_attention_keeps_the_digits_of_float64() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(features(), jnp.float64)
        attention = promotion_attention(x)
        assert attention.dtype == jnp.float64
        np.testing.assert_allclose(attention.sum((1, 2, 3)), 1, rtol=1e-13)
