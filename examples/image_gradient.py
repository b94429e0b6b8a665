"""Shows which pixels a map depends on: the gradient of the mean saliency with respect to the image, by `jax.grad`.

    python examples/image_gradient.py photo.jpg gradient.png

The network is a pure function of its image, so `jax.grad` applies to it directly.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import purinet_jax
from purinet_jax.data.augment import resize_image
from purinet_jax.data.images import read_srgb
from purinet_jax.network.model import normalise


def influence(model: purinet_jax.PurNet, variables: dict, image: np.ndarray) -> Array:
    """Returns how much the mean saliency of the finest map changes with each pixel.

    Args:
      model, variables: as a `Predictor` has them.
      image: uint8 [height, width, 3].

    Returns:
      float32 [height, width], the norm of the gradient over the colours.
    """

    def mean_saliency(pixels: Array) -> Array:
        return jax.nn.sigmoid(model.apply(variables, pixels[None]).saliency[0]).mean()

    pixels = normalise(jnp.asarray(image), model.backbone.pixel_mean, model.backbone.pixel_std)
    return jnp.linalg.norm(jax.jit(jax.grad(mean_saliency))(pixels), axis=-1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the package's)")
    options = parser.parse_args(arguments)
    predictor = purinet_jax.load(options.checkpoint)
    square = resize_image(read_srgb(options.image)[0], predictor.size, predictor.size)
    found = np.asarray(influence(predictor.model, predictor.variables, square))
    # Scaled by a quantile: with the maximum, nearly all pixels would be black.
    shown = np.clip(found / max(float(np.quantile(found, 0.99)), 1e-12), 0, 1)
    Image.fromarray(np.hstack([square, np.repeat((255 * shown).astype(np.uint8)[..., None], 3, -1)])).save(
        options.output
    )


if __name__ == "__main__":
    main()
