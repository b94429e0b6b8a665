"""Kernels for XLA's CPU backend: the same functions as the layers' plain forms, in forms that are fast there."""
