"""Which arrays differ between the devices of `jax.shard_map`, for gradients that are written out."""

import jax
from jax import Array, lax


def varying_axes(x: Array) -> frozenset[str]:
    """The mesh axes over which `jax.shard_map` tracks that `x` varies; none under `pmap`, or with `check_vma=False`."""
    axes: frozenset[str] = jax.typeof(x).mat.varying
    return axes


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Casts `arrays` to vary over every axis that one of them varies over.

    A custom gradient's cotangents vary over all these axes. JAX sums them when it transposes the cast, which therefore
    has to precede the function with the custom gradient.
    """
    axes = frozenset[str]().union(*map(varying_axes, arrays))
    missing = [tuple(sorted(axes - varying_axes(x))) for x in arrays]
    return tuple(lax.pcast(x, names, to="varying") if names else x for x, names in zip(arrays, missing, strict=True))
