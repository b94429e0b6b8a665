"""Kernels for XLA's CPU backend: the layers' functions in forms that compile to fast CPU code. Everywhere else, and in
programs that are exported, convolutions and sums are XLA's own operations. Gradients are written out everywhere, for
the reverse mode: `jax.grad` and `jax.vjp`, not `jax.jvp`.
"""
