"""Kernels for XLA's CPU backend: the layers' functions in forms that compile to fast CPU code. Elsewhere, and in
exported programs, Winograd's convolutions and the sums by matrix products are XLA's own operations. Functions whose
gradients are written out (`jax.custom_vjp`) have a reverse mode only: `jax.grad` and `jax.vjp`, not `jax.jvp`.
"""
