"""What is different on CPUs: some layers have a form that is fast there, with the same numbers up to rounding, and what
a network answers is compiled with other options.
"""

import contextlib

import jax
from jax.stages import Compiled, Lowered

# Every product by Eigen. YNNPACK, which XLA's CPU backend otherwise calls for products and convolutions, takes a fifth
# more time for a light network's many small ones.
_COMPILER_OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}

# Made when the first room is imported that answers or trains: JAX asks that nothing else of it runs at that moment.
_for_all_platforms = jax.make_user_context(default_value=False)


def for_all_platforms() -> contextlib.AbstractContextManager[None]:
    """A context in which programs are traced that shall run anywhere, or whose operations are counted: each layer in
    the form that stands in the paper. JAX keeps what it has traced inside apart from what it traces outside."""
    context: contextlib.AbstractContextManager[None] = _for_all_platforms(True)
    return context


def traced_for_cpus() -> bool:
    """Whether to trace the form that is fast on CPUs: where JAX has no other devices.

    `lax.platform_dependent` would choose when the program is lowered, and have every form traced each time, which made
    tracing a train step half as long again.
    """
    return not _for_all_platforms.value and jax.default_backend() == "cpu"


def compile_forward_pass(lowered: Lowered) -> Compiled:
    """Compiles what a network answers, on CPUs with options that suit it, where this JAX knows them."""
    with contextlib.suppress(Exception):
        return lowered.compile(compiler_options=_COMPILER_OPTIONS)
    return lowered.compile()
