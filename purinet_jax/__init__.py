"""PurNet, salient object detection with purificatory mechanism and structural similarity loss (Li et al.,
IEEE TIP 2021), in JAX and Flax. This package exports the names that most programs need (`__init__.pyi` lists them),
each imported on first use, so that `import purinet_jax` is fast.
"""

import os

import lazy_loader

# In a checkout `purinet_jax.configs` is the top-level folder, as it is in an installed package by pyproject.toml.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_checkout, "configs", "base.py")):
    __path__.append(_checkout)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
