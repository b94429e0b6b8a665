"""What a train step needs in memory, as XLA's own analysis of the compiled program says, without running it; and what
the network keeps of its forward pass for the backward one, before any compiler. Rematerialisation changes the latter on
every platform, the former on accelerators: XLA's CPU backend finds that the same is computed twice, and keeps it.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from purinet_jax.benchmarks.machine import describe_machine, in_process
from purinet_jax.training.losses import Objective


def benchmark_memory(
    model: Mapping[str, Any], *, size: int, batches: Sequence[int], dtypes: Sequence[str] = ("float32", "bfloat16")
) -> dict[str, Any]:
    """Compiles the train step (stage 3's losses, SGD) for each batch size and dtype, without and with `loop.remat`.

    Args:
      model: its configuration, as `build_model` takes it.
      size: side of the square images in pixels.
      batches: images in a train step.
      dtypes: what convolutions compute in.

    Returns:
      JSON values: `rows`, each with MiB of `arguments` (state and batch), `outputs` (the next state: it takes the place
      of the arguments, but for `outputs_not_aliased`), `temporaries` (what is there at once in between), and `kept` (by
      the network for its backward pass, its parameters included).
    """
    settings = {"model": dict(model), "size": size}
    rows = []
    for dtype in dtypes:
        for batch_size in batches:
            for remat in (False, True):
                row = {"batch_size": batch_size, "dtype": dtype, "remat": remat}
                print(f"compiling {row} …", file=sys.stderr, flush=True)
                rows.append(in_process(_analyse, {**settings, **row}))
    machine = {**describe_machine(), **rows[0]["machine"]}
    for row in rows:
        del row["machine"]
    return {"machine": machine, "date": time.strftime("%Y-%m-%d"), "settings": settings, "rows": rows}


def _analyse(settings: dict[str, Any]) -> dict[str, Any]:
    """One row, in a fresh process."""
    import jax
    import jax.numpy as jnp

    from purinet_jax.network.model import build_model
    from purinet_jax.training.optim import OptimizerConfig, make_optimizer
    from purinet_jax.training.step import create_state, train_step

    network = build_model(
        settings["model"],
        dtype=jnp.dtype(settings["dtype"]),
        remat=settings["remat"],
    )
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = jax.eval_shape(lambda x: create_state(network, x, optimizer, Objective()), variables)
    count, size = settings["batch_size"], settings["size"]
    shapes: dict[str, Any] = {"image": ((count, size, size, 3), jnp.uint8), "mask": ((count, size, size, 1), jnp.uint8)}
    shapes["superpixels"] = ((count, size, size), jnp.int32)
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    analysis: Any = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile().memory_analysis()

    def pullback(variables: Any, images: Any) -> Any:
        def maps(params: Any) -> Any:
            return network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])

        return jax.vjp(maps, variables["params"], has_aux=True)[1]

    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    residuals = jax.eval_shape(pullback, dict(variables), images)
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    def mebibytes(number: int) -> float:
        return round(number / 2**20, 2)

    return {
        **{name: settings[name] for name in ("batch_size", "dtype", "remat")},
        "arguments_mib": mebibytes(analysis.argument_size_in_bytes),
        "outputs_mib": mebibytes(analysis.output_size_in_bytes),
        "outputs_not_aliased_mib": mebibytes(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        "temporaries_mib": mebibytes(analysis.temp_size_in_bytes),
        "kept_mib": mebibytes(kept),
        "machine": {"device": jax.devices()[0].device_kind, "jax": jax.__version__},
    }
