"""Which form of a layer to trace: some have one that is fast on CPUs. All give the same numbers up to rounding."""

from contextlib import AbstractContextManager

import jax

_for_all_platforms = jax.make_user_context(default_value=False)


def for_all_platforms() -> AbstractContextManager[None]:
    """A context in which programs are traced that shall run anywhere, or whose operations are counted: each layer in
    the form that stands in the paper. JAX keeps what it has traced inside apart from what it traces outside."""
    context: AbstractContextManager[None] = _for_all_platforms(True)
    return context


def traced_for_cpus() -> bool:
    """Whether to trace the form that is fast on CPUs: where JAX has no other devices.

    `lax.platform_dependent` would choose when the program is lowered, and have every form traced each time, which made
    tracing a train step half as long again.
    """
    return not _for_all_platforms.value and jax.default_backend() == "cpu"
