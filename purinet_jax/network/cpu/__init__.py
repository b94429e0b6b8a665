"""Kernels for XLA's CPU backend: the layers' functions in forms that compile to fast CPU code. Everywhere else, and in
programs that are exported, they are XLA's own operations.
"""
