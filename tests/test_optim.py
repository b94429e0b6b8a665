"""The optimisers against PyTorch's update rules written out in NumPy, group by group."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from purinet_jax.errors import InputError
from purinet_jax.training.optim import (
    GROUPS,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    parameter_group,
    parameter_labels,
)

# One weight and one bias in each group, under names of the network's.
MODULES = {
    "backbone": "backbone",
    "purificatory": "convert5",
    "promotion": "oa_convert5",
    "rectification": "ea_pre_predict1_g",
}
STEPS = 3


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        module: {
            "0": {
                "kernel": rng.standard_normal((2, 3)).astype(np.float32),
                "bias": rng.standard_normal(3).astype(np.float32),
            }
        }
        for module in MODULES.values()
    }


def released_rate(group: str, step: int, steps: int) -> float:
    if group == "backbone":
        return 1e-3 * (1 - step / steps) ** 0.9
    return 1e-2 if group in ("promotion", "rectification") else 1e-3


def run(config: OptimizerConfig, steps: int, gradients: list[Any]) -> list[Any]:
    """The parameters before the first step and after each."""
    optimizer = make_optimizer(config, steps)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = [draw(0)]
    state = optimizer.init(history[0])
    for gradient in gradients:
        params, state = step(history[-1], state, gradient)
        history.append(params)
    return history


def torch_sgd(
    parameter: np.ndarray,
    gradients: list[np.ndarray],
    rate: Callable[[int], float],
    momentum: float,
    weight_decay: float,
) -> list[np.ndarray]:
    parameter, buffer, history = parameter.astype(np.float64), None, []
    for step, gradient in enumerate(gradients):
        gradient = gradient + weight_decay * parameter
        buffer = gradient if buffer is None else momentum * buffer + gradient
        parameter = parameter - rate(step) * buffer
        history.append(parameter)
    return history


@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("group", GROUPS)
def test_released_sgd_equals_pytorchs_in_every_group(group: str, leaf: str, released_run: list[Any]) -> None:
    module = MODULES[group]
    gradients = [draw(10 + i)[module]["0"][leaf] for i in range(STEPS)]
    multiple, decay = (2, 0.0) if leaf == "bias" else (1, 5e-4)
    expected = torch_sgd(
        draw(0)[module]["0"][leaf], gradients, lambda t: multiple * released_rate(group, t, STEPS), 0.9, decay
    )
    start = draw(0)[module]["0"][leaf]
    for params, e in zip(released_run[1:], expected, strict=True):
        np.testing.assert_allclose(params[module]["0"][leaf] - start, e - start, rtol=1e-4, atol=3e-7)


@pytest.fixture(scope="module")
def released_run() -> list[Any]:
    return run(OptimizerConfig(), STEPS, [draw(10 + i) for i in range(STEPS)])


def test_sgd_decays_weights_and_no_biases() -> None:
    zero = jax.tree.map(np.zeros_like, draw(0))
    config = OptimizerConfig(rate=0.5, weight_decay=0.1, momentum=0.5)
    history = run(config, 100, [zero, zero])
    for group, module in MODULES.items():
        start, after = draw(0)[module]["0"], history[-1][module]["0"]
        np.testing.assert_array_equal(after["bias"], start["bias"])
        scale = config.group_rates[group] * 0.5
        rate = [scale * (1 - t / 100) ** 0.9 if group == "backbone" else scale for t in range(2)]
        expected = torch_sgd(start["kernel"], [np.zeros((2, 3))] * 2, rate.__getitem__, 0.5, 0.1)
        np.testing.assert_allclose(after["kernel"], expected[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (50, 0.5**0.9), (99, 0.01**0.9), (100, 0.0), (120, 0.0)])
def test_only_the_backbones_released_rate_decays(step: int, factor: float) -> None:
    config = OptimizerConfig()
    rates = {group: float(learning_rate(config, 100, group)(step)) for group in GROUPS}
    expected = {"backbone": 1e-3 * factor, "purificatory": 1e-3, "promotion": 1e-2, "rectification": 1e-2}
    assert rates == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_all_groups_may_decay_with_any_power() -> None:
    config = OptimizerConfig(rate=2.0, decaying_groups=GROUPS, power=2.0)
    for group in GROUPS:
        expected = 2.0 * config.group_rates[group] * 0.75**2
        assert float(learning_rate(config, 8, group)(2)) == pytest.approx(expected)


@pytest.mark.parametrize("group", ["backbone", "promotion"])
def test_warmup_rises_linearly_from_zero_and_then_leaves_the_rate_alone(group: str) -> None:
    config, plain = OptimizerConfig(warmup_steps=4), OptimizerConfig()
    for step, factor in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        expected = factor * float(learning_rate(plain, 20, group)(step))
        assert float(learning_rate(config, 20, group)(step)) == pytest.approx(expected, rel=1e-5)


def test_warmup_leaves_parameters_alone_on_its_first_step() -> None:
    history = run(OptimizerConfig(warmup_steps=2), STEPS, [draw(10), draw(11)])
    for a, b, c in zip(*map(jax.tree.leaves, history), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(b) != np.asarray(c)).all()


@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("group", GROUPS)
def test_adamw_decays_decoupled_and_no_biases(group: str, leaf: str, adamw_run: list[Any]) -> None:
    module = MODULES[group]
    start = parameter = draw(0)[module]["0"][leaf].astype(np.float64)
    multiple, decay = (2, 0.0) if leaf == "bias" else (1, 0.1)
    first = second = np.zeros(parameter.shape)
    for step in range(STEPS):
        gradient = draw(10 + step)[module]["0"][leaf].astype(np.float64)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        moment, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        rate = multiple * released_rate(group, step, STEPS)
        parameter = parameter - rate * decay * parameter - rate * moment / (np.sqrt(square) + 1e-8)
        actual = adamw_run[step + 1][module]["0"][leaf]
        np.testing.assert_allclose(actual - start, parameter - start, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def adamw_run() -> list[Any]:
    return run(OptimizerConfig("adamw", weight_decay=0.1), STEPS, [draw(10 + i) for i in range(STEPS)])


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clip_norm_bounds_the_norm_over_all_groups_together(clip_norm: float) -> None:
    gradient = draw(10)
    norm = float(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient))))
    scaled = jax.tree.map(lambda g: g * min(1, clip_norm / norm), gradient)
    settings: dict[str, Any] = {"weight_decay": 0.0, "rate": 1.0}
    clipped = run(OptimizerConfig(clip_norm=clip_norm, **settings), STEPS, [gradient])[-1]
    expected = run(OptimizerConfig(**settings), STEPS, [scaled])[-1]
    for a, e in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("backbone", "backbone"),
        ("convert5", "purificatory"),
        ("feature_upscore3_2", "purificatory"),
        ("predict1", "purificatory"),
        ("oa_predict1", "promotion"),
        ("oa_feature_upscore5", "promotion"),
        ("ea_e_predict5_e_upscore", "rectification"),
        ("ea_convert1", "rectification"),
    ],
)
def test_parameter_group_follows_the_authors_prefixes(name: str, group: str) -> None:
    assert parameter_group(name) == group


def test_parameter_labels_set_biases_apart_and_nothing_else() -> None:
    leaves = {"kernel": 0, "bias": 0, "scale": 0, "slope": 0, "transposed_kernel": 0}
    labels = parameter_labels({"oa_predict1": {"0": leaves}, "backbone": {"layer0": {"1": leaves}}})
    for group, found in (
        ("promotion", labels["oa_predict1"]["0"]),
        ("backbone", labels["backbone"]["layer0"]["1"]),
    ):
        assert found == dict.fromkeys(leaves, group) | {"bias": f"{group}_bias"}


def test_networks_without_attention_are_optimised_too() -> None:
    params = {name: tree for name, tree in draw(0).items() if name in ("backbone", "convert5")}
    optimizer = make_optimizer(OptimizerConfig(), 5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert set(updates) == {"backbone", "convert5"}
    np.testing.assert_allclose(updates["convert5"]["0"]["bias"], -2e-3 * params["convert5"]["0"]["bias"], rtol=1e-5)


RATES = dict.fromkeys(GROUPS, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, r"^optimizer\.name: 'adam'"),
        ({"group_rates": RATES | {"decoder": 1.0}}, r"^optimizer\.group_rates: 'decoder'"),
        ({"group_rates": {"backbone": 1.0}}, r"^optimizer\.group_rates: purificatory is missing"),
        (
            {"group_rates": RATES | {"backbone": float("nan")}},
            r"^optimizer\.group_rates\.backbone: nan is not a number",
        ),
        ({"momentum": 1.0}, r"^optimizer\.momentum: 1\.0 is not below 1$"),
        ({"decaying_groups": ("backbone", "heads")}, r"^optimizer\.decaying_groups: 'heads'"),
    ],
)
def test_config_errors_name_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_a_run_of_no_steps_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^steps: 0 "):
        make_optimizer(OptimizerConfig(), 0)


def test_a_cosine_falls_from_the_rate_to_zero() -> None:
    config = OptimizerConfig(rate=0.4, decay="cosine", decaying_groups=("backbone",))
    schedule = learning_rate(config, 100, "backbone")
    for step, factor in ((0, 1.0), (25, 0.5 + 0.5**1.5), (50, 0.5), (100, 0.0)):
        assert float(schedule(step)) == pytest.approx(0.4 * factor, abs=1e-7)
    assert float(learning_rate(config, 100, "purificatory")(60)) == pytest.approx(0.4)
    with pytest.raises(InputError, match=r"optimizer\.decay: 'linear'"):
        OptimizerConfig(decay="linear")  # type: ignore[arg-type]
