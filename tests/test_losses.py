"""Every loss term against a loop in NumPy, and the closed forms that the paper's terms must obey."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from purinet_jax.errors import InputError
from purinet_jax.network.model import Maps
from purinet_jax.training.losses import (
    Objective,
    batch_mean,
    binary_cross_entropy,
    gaussian_window,
    iou_loss,
    main_loss,
    purnet_losses,
    rectification_error_loss,
    region_means,
    ssim_loss,
    structural_similarity_loss,
    total_loss,
    windowed_ssim,
)

close = np.testing.assert_allclose
structural = jax.jit(structural_similarity_loss, static_argnames=("released", "max_regions"))
structural_gradient = jax.jit(
    jax.grad(lambda *arguments, **settings: structural_similarity_loss(*arguments, **settings).sum()),
    static_argnames="released",
)
losses_of = jax.jit(purnet_losses, static_argnames="objective")
similarity_of = jax.jit(windowed_ssim)
one_minus_ssim = jax.jit(ssim_loss)
main = jax.jit(main_loss)
rectification_error = jax.jit(rectification_error_loss)
cross_entropy = jax.jit(binary_cross_entropy)
HEIGHT, WIDTH, LEVELS = 12, 13, 2


def logits(seed: int, *shape: int) -> np.ndarray:
    return (2 * np.random.default_rng(seed).standard_normal(shape or (3, HEIGHT, WIDTH, 1))).astype(np.float32)


def mask(seed: int = 100, count: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(size=(count, HEIGHT, WIDTH, 1)) > 0.6).astype(np.float32)


def superpixels(seed: int = 200, count: int = 3) -> np.ndarray:
    """Labels with gaps, and another largest label in each image."""
    labels = np.random.default_rng(seed).integers(0, 7, (count, HEIGHT, WIDTH))
    labels[labels == 2] = 3
    labels[1:2][labels[1:2] == 6] = 9
    labels[2:][labels[2:] > 4] = 0
    return labels.astype(np.int32)


def maps_of(seed: int, count: int = 3, attention: bool = True) -> Maps:
    def draw(offset: int) -> tuple[Any, ...]:
        return tuple(logits(seed + offset + i, count, HEIGHT, WIDTH, 1) for i in range(LEVELS))

    return Maps(draw(0), draw(10), draw(20), draw(30)) if attention else Maps(draw(0))


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def entropy(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def naive_structural(saliency: np.ndarray, target: np.ndarray, regions: np.ndarray, floor: float = 0.0) -> float:
    """One image: means by region, normalised differences, KL pair by pair."""
    count = int(regions.max()) + 1

    def relations(values: np.ndarray) -> np.ndarray:
        means = [values[regions == i].mean() if (regions == i).any() else 0.0 for i in range(count)]
        return np.array([[(a - b + 1) / 2 for b in means] for a in means])

    truth, predicted = relations(target), relations(saliency)
    total = 0.0
    for d, p in zip(truth.ravel(), np.maximum(predicted, floor * predicted.mean()).ravel(), strict=True):
        if d > 0:
            d, p = d / truth.sum(), p / predicted.sum()
            total += d * np.log(d / p)
    return total


def test_binary_cross_entropy_equals_the_formula() -> None:
    x, y = logits(0), np.abs(np.sin(logits(1)))
    close(cross_entropy(x, y), entropy(sigmoid(x), y).mean(), rtol=1e-5)


@pytest.mark.parametrize(("logit", "target", "expected"), [(500, 0, 100), (-500, 1, 100), (500, 1, 0), (-500, 0, 0)])
def test_binary_cross_entropy_bounds_its_logarithms_as_pytorch_does(
    logit: float, target: float, expected: float
) -> None:
    x = np.full((1, 2, 2, 1), logit, np.float32)
    close(cross_entropy(x, np.full_like(x, target)), expected)


def test_main_loss_weighs_each_pixel_by_one_plus_the_absolute_error() -> None:
    x, y, error = logits(0), mask(), np.tanh(logits(2))
    expected = entropy(np.clip(sigmoid(x), 1e-4, 1 - 1e-4), y)
    close(main(x, y, error), ((1 + np.abs(error)) * expected).mean(), rtol=1e-5)
    close(main(x, y, -error), main(x, y, error), rtol=1e-6)
    close(main(x, y), expected.mean(), rtol=1e-5)


def test_main_loss_clips_the_probability() -> None:
    x = np.full((1, 2, 2, 1), 100.0, np.float32)
    close(main(x, np.zeros_like(x)), -np.log(1e-4), rtol=1e-3)
    close(main(-x, np.ones_like(x)), -np.log(1e-4), rtol=1e-3)
    close(main(x, np.ones_like(x)), -np.log(1 - 1e-4), rtol=1e-3)
    assert not jax.jit(jax.grad(main_loss))(x, np.zeros_like(x)).any()


def test_rectification_error_loss_compares_the_tanh_with_what_the_map_lacks() -> None:
    x, saliency, y = logits(0), logits(1), mask()
    probability = (np.tanh(x.astype(np.float64)) + 1) / 2
    expected = entropy(probability, (y - sigmoid(saliency) + 1) / 2).mean()
    close(rectification_error(x, saliency, y), expected, rtol=1e-5)


def test_rectification_error_loss_is_least_at_the_signed_error_itself() -> None:
    saliency, y = logits(1), mask()
    error = np.arctanh(y - sigmoid(saliency)).astype(np.float32)
    gradient = jax.jit(jax.grad(rectification_error_loss))(error, saliency, y)
    close(gradient, 0, atol=1e-7)


def test_rectification_error_loss_does_not_differentiate_the_rectified_map() -> None:
    x, saliency, y = logits(0), logits(1), mask()
    error_gradient, saliency_gradient = jax.jit(jax.grad(rectification_error_loss, (0, 1)))(x, saliency, y)
    assert error_gradient.any()
    assert not saliency_gradient.any()


def test_region_means_average_each_label_and_give_zero_to_one_without_pixels() -> None:
    values, regions = logits(0, HEIGHT, WIDTH, 2), superpixels()[0]
    means = region_means(jnp.asarray(values), regions, 10)
    assert means.shape == (10, 2)
    for label in range(10):
        inside = values[regions == label]
        close(means[label], inside.mean(0) if len(inside) else 0, rtol=1e-4, atol=1e-6)
    assert not means[2].any()


@pytest.mark.parametrize("max_regions", [10, 64])
@pytest.mark.parametrize("released", [True, False])
def test_structural_loss_equals_the_loop_over_pairs_for_every_level(released: bool, max_regions: int) -> None:
    x, y, regions = logits(0, 3, HEIGHT, WIDTH, LEVELS), mask(), superpixels()
    assert regions.max((1, 2)).tolist() == [6, 9, 4]
    assert all(2 not in image for image in regions)
    probability = sigmoid(sigmoid(x)) if released else sigmoid(x)
    floor = 0.0 if released else 1e-4
    expected = [
        np.mean([naive_structural(probability[i, ..., k], y[i, ..., 0], regions[i], floor) for i in range(3)])
        for k in range(LEVELS)
    ]
    actual = structural(x, y, regions, released=released, max_regions=max_regions)
    assert actual.shape == (LEVELS,)
    close(actual, expected, rtol=1e-3, atol=1e-6)


def stripes(salient: int, background: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask and superpixels, of unequal sizes, that follow its border: so many of either kind."""
    count = salient + background
    regions = np.repeat(np.arange(count), np.arange(count) % 3 + 1)[None, :, None]
    return (regions < salient)[..., None].astype(np.float32), regions


# With q of the superpixels salient, D of the truth is 1/2 within either kind, 1 from object to background and
# 0 back, over n²/2. The loss is 2·q·(1 − q)·log(1/p), where p is what the map's D has for the truth's 1.
STEP = (sigmoid(1) - sigmoid(0)) / 2


@pytest.mark.parametrize(("salient", "background"), [(3, 14), (8, 9), (1, 16)])
@pytest.mark.parametrize(
    ("released", "sign", "p"),
    [(True, 1, 0.5 + STEP), (True, -1, 0.5 - STEP), (False, 1, 1.0), (False, -1, 0.5e-4)],
)
def test_structural_loss_of_perfect_and_inverted_maps(
    released: bool, sign: int, p: float, salient: int, background: int
) -> None:
    y, regions = stripes(salient, background)
    q = salient / (salient + background)
    loss = structural(sign * (2 * y - 1) * 200, y, regions, released=released)
    close(loss, [-2 * q * (1 - q) * np.log(p)], rtol=1e-4, atol=1e-6)


def test_released_structural_loss_of_a_perfect_map_is_not_zero() -> None:
    y, regions = stripes(3, 14)
    perfect, inverted = 40 * (2 * y - 1), -40 * (2 * y - 1)
    # Computed by PyTorch's kl_div on twice-sigmoided means, 3 of 17 superpixels salient.
    close(structural(perfect, y, regions), [0.1410], atol=5e-5)
    close(structural(inverted, y, regions), [0.2778], atol=5e-5)


@pytest.mark.parametrize("released", [True, False])
def test_structural_loss_counts_a_gap_below_the_largest_label_as_a_region_of_saliency_zero(
    released: bool,
) -> None:
    y, regions = stripes(2, 3)
    with_gap = np.where(regions >= 4, regions + 1, regions)
    x = logits(0, *y.shape)
    probability = sigmoid(sigmoid(x)) if released else sigmoid(x)
    gap, no_gap = (float(structural(x, y, r, released=released)[0]) for r in (with_gap, regions))
    close(gap, naive_structural(probability[0, ..., 0], y[0, ..., 0], with_gap[0]), rtol=1e-4)
    assert abs(gap - no_gap) > 0.01


def test_structural_loss_takes_each_images_labels_only_to_its_own_largest() -> None:
    y, regions = stripes(2, 3)
    x = logits(0, *y.shape)
    alone = structural(x, y, regions, max_regions=5)
    more = np.concatenate([regions, regions + 40])
    both = structural(np.concatenate([x, x]), np.concatenate([y, y]), more, max_regions=64)
    shifted = structural(x, y, regions + 40, max_regions=64)
    close(both, (alone + shifted) / 2, rtol=1e-4)
    assert abs(float(alone[0] - shifted[0])) > 0.01


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e3, -1e3])
def test_structural_loss_gradient_is_finite_for_saturated_maps(released: bool, scale: float) -> None:
    y, regions = stripes(3, 14)
    x = scale * (2 * y - 1)
    gradient = structural_gradient(x, y, regions, released=released)
    assert np.isfinite(gradient).all()
    assert gradient.any() == (scale == 1)


def test_structural_loss_gradient_equals_finite_differences() -> None:
    y, regions = stripes(2, 3)
    x = logits(0, *y.shape) / 2

    def reference(x: np.ndarray) -> float:
        return naive_structural(sigmoid(sigmoid(x))[0, ..., 0], y[0, ..., 0], regions[0])

    gradient = structural_gradient(x, y, regions)
    for at in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-5
        expected = (reference(x + step) - reference(x - step)) / 2e-5
        close(gradient[at], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_windowed_ssim_equals_scikit_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(2, 19, 24, 2)).astype(np.float32)
    y = np.clip(x + 0.2 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
    actual = similarity_of(x, y)
    assert actual.shape == (2, 2)
    for b, c in np.ndindex(2, 2):
        expected = structural_similarity(
            x[b, ..., c].astype(np.float64),
            y[b, ..., c].astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            win_size=11,
            data_range=1,
        )
        close(actual[b, c], expected, atol=1e-5)


def test_windowed_ssim_of_equal_images_is_one_and_of_small_ones_an_error() -> None:
    x = np.random.default_rng(0).uniform(size=(1, 11, 11, 1)).astype(np.float32)
    close(similarity_of(x, x), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="at least 11, not 10×11"):
        similarity_of(x[:, :10], x[:, :10])


def test_gaussian_window_is_symmetric_and_sums_to_one() -> None:
    window = gaussian_window()
    assert window.shape == (11,)
    close(window.sum(), 1, rtol=1e-6)
    close(window, window[::-1])
    close(window[6] / window[5], np.exp(-1 / (2 * 1.5**2)), rtol=1e-5)


def test_ssim_loss_is_one_minus_the_mean_similarity_of_each_level() -> None:
    x, y = logits(0, 3, HEIGHT, WIDTH, LEVELS), mask()
    valid = np.array([True, False, True])
    similarity = np.stack([similarity_of(sigmoid(x[..., k : k + 1]), y)[:, 0] for k in range(LEVELS)], axis=1)
    close(one_minus_ssim(x, y), 1 - similarity.mean(0), rtol=1e-4)
    close(one_minus_ssim(x, y, valid), 1 - similarity[valid].mean(0), rtol=1e-4)


def test_batch_mean_over_no_valid_image_is_zero() -> None:
    assert batch_mean(jnp.array([np.nan, 1.0]), jnp.array([False, False])) == 0
    close(batch_mean(jnp.array([np.nan, 1.0, 3.0]), jnp.array([False, True, True])), 2)
    close(batch_mean(jnp.array([2.0, 3.0])), 2.5)


def batch_of(count: int = 3) -> dict[str, Any]:
    return {"mask": mask(count=count), "superpixels": superpixels(count=count)}


OBJECTIVES = [
    Objective(structural, released, max_regions=16)
    for structural, released in (("region", True), ("region", False), ("ssim", True), ("none", True))
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.slow
def test_purnet_losses_are_the_terms_of_each_level(attention: bool, objective: Objective) -> None:
    maps, batch = maps_of(0, attention=attention), batch_of()
    y = batch["mask"]
    error = [np.tanh(x) for x in maps.error] if attention else [None] * LEVELS
    expected = {"main": [main(x, y, e) for x, e in zip(maps.saliency, error, strict=True)]}
    if attention:
        expected |= {
            "promotion": [cross_entropy(x, y) for x in maps.promotion],
            "rectification_saliency": [cross_entropy(x, y) for x in maps.rectification],
            "rectification_error": [
                rectification_error(e, x, y) for e, x in zip(maps.error, maps.rectification, strict=True)
            ],
        }
    if objective.structural == "region":
        released = objective.released
        expected["structural"] = [structural(x, y, batch["superpixels"], released=released)[0] for x in maps.saliency]
    elif objective.structural == "ssim":
        expected["structural"] = [one_minus_ssim(x, y)[0] for x in maps.saliency]
    actual = losses_of(maps, batch, objective)
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].shape == (LEVELS,)
        close(actual[name], values, rtol=1e-4, err_msg=name)
    close(total_loss(actual), sum(np.sum(values) for values in expected.values()), rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_padded_images_change_no_term_even_where_they_are_nan(objective: Objective) -> None:
    maps, batch = maps_of(0), batch_of()
    padded_maps = jax.tree.map(lambda x: np.concatenate([x, np.full_like(x[:2], np.nan)]), maps)
    padded = {
        "mask": np.concatenate([batch["mask"], np.full((2, HEIGHT, WIDTH, 1), np.nan, np.float32)]),
        "superpixels": np.concatenate([batch["superpixels"], np.zeros((2, HEIGHT, WIDTH), np.int32)]),
        "valid": np.array([True] * 3 + [False] * 2),
    }
    expected = losses_of(maps, batch, objective)
    actual = losses_of(padded_maps, padded, objective)
    assert set(actual) == set(expected)
    for name, values in expected.items():
        close(actual[name], values, rtol=1e-5, err_msg=name)


def test_padded_images_change_no_gradient_of_the_others() -> None:
    objective = Objective(max_regions=16)
    maps, batch = maps_of(0), batch_of()

    def gradient(maps: Maps, batch: dict[str, Any]) -> Maps:
        return jax.jit(jax.grad(lambda maps: total_loss(losses_of(maps, batch, objective))))(maps)

    first = {name: values[:2] for name, values in batch.items()}
    expected = gradient(jax.tree.map(lambda x: x[:2], maps), first)
    actual = gradient(maps, batch | {"valid": np.array([True, True, False])})
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(a[:2], e, rtol=1e-4, atol=1e-7)
        assert not a[2].any()


@pytest.mark.parametrize("objective", OBJECTIVES[:3], ids=str)
def test_losses_under_vmap_and_jit_equal_each_batch_alone(objective: Objective) -> None:
    batches = [(maps_of(50 * i), batch_of() | {"valid": np.array([True, i == 0, True])}) for i in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    actual = jax.jit(jax.vmap(lambda maps, batch: losses_of(maps, batch, objective)))(*stacked)
    for i, (maps, batch) in enumerate(batches):
        for name, values in losses_of(maps, batch, objective).items():
            close(actual[name][i], values, rtol=1e-4, err_msg=name)


def test_masks_of_any_dtype_give_the_same_losses() -> None:
    maps, batch = maps_of(0), batch_of()
    objective = Objective(max_regions=16)
    expected = losses_of(maps, batch, objective)
    for dtype in (np.uint8, bool):
        actual = losses_of(maps, batch | {"mask": batch["mask"].astype(dtype)}, objective)
        for name, values in expected.items():
            close(actual[name], values, rtol=1e-6)


@pytest.mark.parametrize("released", [True, False])
def test_only_the_released_main_loss_differentiates_its_weight(released: bool) -> None:
    objective = Objective("none", released)
    maps, batch = maps_of(0), batch_of()
    gradient = jax.jit(jax.grad(lambda maps: purnet_losses(maps, batch, objective)["main"].sum()))(maps)
    assert all(x.any() for x in gradient.saliency)
    assert all(bool(x.any()) == released for x in gradient.error)
    assert not any(x.any() for x in gradient.promotion + gradient.rectification)


def test_total_loss_is_the_sum_of_all_terms_and_levels() -> None:
    assert total_loss({"a": jnp.array([1.0, 2.0]), "b": jnp.array([10.0])}) == 13


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structural": "regions"}, r"^losses\.structural: 'regions'"),
        ({"max_regions": 0}, r"^losses\.max_regions: 0 "),
        ({"max_regions": 65537}, r"^losses\.max_regions: 65537 "),
    ],
)
def test_objective_errors_name_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(**settings)


def test_iou_loss_equals_its_definition_and_takes_empty_masks() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (3, 5, 4, 2)).astype(np.float32)
    target = (rng.random((3, 5, 4, 1)) < 0.4).astype(np.float32)
    target[2] = 0
    p = 1 / (1 + np.exp(-logits))
    both = (p * target).sum((1, 2))
    expected = 1 - (both + 1) / (p.sum((1, 2)) + target.sum((1, 2)) - both + 1)
    np.testing.assert_allclose(iou_loss(logits, target), expected.mean(0), rtol=1e-5)
    valid = jnp.array([True, False, True])
    np.testing.assert_allclose(iou_loss(logits, target, valid), expected[[0, 2]].mean(0), rtol=1e-5)
    sure = 100 * (2 * target - 1)
    np.testing.assert_allclose(iou_loss(sure, target), 0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: iou_loss(x, target).sum())(sure)).all()
