"""Which release of the package is installed."""

from importlib.metadata import version

__version__ = version("purinet_jax")
