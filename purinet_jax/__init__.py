"""PurNet, salient object detection with purificatory mechanism and structural similarity loss (Li et al.,
IEEE TIP 2021), in JAX and Flax. This room holds the names that most programs need (`__init__.pyi` lists them); each is
imported when it is first asked for, so that `import purinet_jax` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
