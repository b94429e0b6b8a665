"""PurNet, salient object detection with purificatory mechanism and structural similarity loss (Li et al.,
IEEE TIP 2021), in JAX and Flax. This room holds the names that most programs need; each is imported when it
is first asked for, so that `import purinet_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purinet_jax.errors import InputError
    from purinet_jax.network.attention import promotion_attention, rectification_attention
    from purinet_jax.network.model import PurNet
    from purinet_jax.prediction.predict import Predictor, load
    from purinet_jax.training.losses import structural_similarity_loss

    __version__: str

__all__ = [
    "InputError",
    "Predictor",
    "PurNet",
    "__version__",
    "load",
    "promotion_attention",
    "rectification_attention",
    "structural_similarity_loss",
]

_ROOMS = {
    "InputError": "errors",
    "Predictor": "prediction.predict",
    "PurNet": "network.model",
    "load": "prediction.predict",
    "promotion_attention": "network.attention",
    "rectification_attention": "network.attention",
    "structural_similarity_loss": "training.losses",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("purinet_jax")
    elif name in _ROOMS:
        value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
