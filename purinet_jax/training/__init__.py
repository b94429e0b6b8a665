"""Training: the loop (`purinet_jax.training.train`) and all that a functional user puts together without it: losses,
the step, the optimiser. What is handed on is imported when it is first asked for, since much of it takes a second.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
