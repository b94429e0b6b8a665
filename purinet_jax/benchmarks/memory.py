"""Memory of a train step, from XLA's analysis of the compiled program, without running it, and from what the network
keeps of its forward pass for the backward pass. Rematerialisation reduces the latter on every platform, the former on
accelerators alone: XLA's CPU backend merges equal computations, and so keeps their results.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from purinet_jax.benchmarks.machine import heading, in_process, say
from purinet_jax.benchmarks.network import lower_train_step
from purinet_jax.network.config import ModelConfig


def benchmark_memory(
    config: ModelConfig, *, size: int, batches: Sequence[int], dtypes: Sequence[str] = ("float32", "bfloat16")
) -> dict[str, Any]:
    """Compiles the train step (stage 3's losses, SGD) for each batch size and dtype, without and with `loop.remat`.

    Args:
      config: the network.
      size: side of the square images in pixels.
      batches: images in a train step.
      dtypes: what convolutions compute in.

    Returns:
      JSON values: `rows`, each with MiB of `arguments` (state and batch), `outputs` (the next state, which reuses the
      arguments' memory but for `outputs_not_aliased`), `temporaries` (at their peak) and `kept` (by the network for its
      backward pass, including its parameters).
    """
    result = heading({"model": config.to_dict(), "size": size})
    result["rows"] = []
    for dtype in dtypes:
        for batch_size in batches:
            for remat in (False, True):
                row = {"batch_size": batch_size, "dtype": dtype, "remat": remat}
                say(f"compiling {row}")
                result["rows"].append(row | in_process(_analyse, config, size, batch_size, dtype, remat))
    return result


def _analyse(config: ModelConfig, size: int, batch_size: int, dtype: str, remat: bool) -> dict[str, float]:
    network = config.build(dtype=jnp.dtype(dtype), remat=remat)
    analysis: Any = lower_train_step(network, batch_size, size).compile().memory_analysis()

    def pullback(variables: Any, images: Any) -> Any:
        def maps(params: Any) -> Any:
            return network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])

        return jax.vjp(maps, variables["params"], has_aux=True)[1]

    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    images = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)
    residuals = jax.eval_shape(pullback, dict(variables), images)
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "outputs_not_aliased": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "kept": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals)),
    }
    return {f"{name}_mib": round(number / 2**20, 2) for name, number in sizes.items()}
