"""The choice between a layer's CPU form and its plain form, and the compiler options of a forward pass."""

import contextlib

import jax
from jax.stages import Compiled, Lowered

# Eigen computes every product: YNNPACK, XLA's default, takes a fifth longer for a light network's many small ones.
_COMPILER_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}

# `make_user_context` must be called before other JAX code runs.
_for_all_platforms = jax.make_user_context(default_value=False)


def for_all_platforms() -> contextlib.AbstractContextManager[None]:
    """A context in which layers are traced in their plain form: for programs that run on any platform, and for counting
    operations. JAX caches what is traced inside it separately."""
    context: contextlib.AbstractContextManager[None] = _for_all_platforms(True)
    return context


def traced_for_cpus() -> bool:
    """Whether to trace the CPU form: where the CPU is JAX's default backend, outside `for_all_platforms`.

    `lax.platform_dependent` would choose at lowering, but traces both forms: half as long again for a train step.
    """
    return not _for_all_platforms.value and jax.default_backend() == "cpu"


def compile_forward_pass(lowered: Lowered) -> Compiled:
    """Compiles a forward pass, on CPUs with options that suit it if this version of JAX knows them."""
    with contextlib.suppress(Exception):
        return lowered.compile(compiler_options=_COMPILER_OPTIONS)
    return lowered.compile()
