"""The released augmentation, as plain functions on NumPy arrays: squash to a square, mirror, turn by a few
degrees, always image, mask and superpixels together. Images stay uint8; the device normalises them.
"""

import cv2
import numpy as np
from PIL import Image

# The pipeline runs several examples side by side already; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image as the released code does, by Pillow's bilinear filter: pixel centres aligned,
    smoothed where it shrinks. OpenCV's does not smooth, and moves the network's answers by up to 22 of 255.

    Args:
      image: uint8 [rows, columns, channels] or [rows, columns].
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      uint8 [height, width, channels] or [height, width].
    """
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a mask or superpixels: each pixel takes the label nearest to its centre.

    Args:
      labels: uint8 or int32 [rows, columns].
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      [height, width], of the same dtype; no label that was not there before.
    """
    # INTER_NEAREST takes a pixel's corner for its centre and would shift labels against the image by half a
    # pixel.
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def rotate_image(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns an image about its centre, bilinearly, zeros filled in.

    Args:
      image: uint8 [height, width, channels].
      degrees: counter-clockwise.

    Returns:
      uint8 [height, width, channels].
    """
    return _rotate(image, degrees, cv2.INTER_LINEAR)


def rotate_labels(labels: np.ndarray, degrees: float) -> np.ndarray:
    """Turns a mask or superpixels about the centre, nearest label, zeros filled in.

    Args:
      labels: uint8 or int32 [height, width].
      degrees: counter-clockwise.

    Returns:
      [height, width], of the same dtype. What comes from outside the frame is 0: ground in a mask, region 0
      in superpixels.
    """
    # OpenCV rounds ties differently for bytes and for wider numbers, but mask and superpixels must agree.
    return _rotate(labels.astype(np.int32, copy=False), degrees, cv2.INTER_NEAREST).astype(labels.dtype)


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    superpixels: np.ndarray | None,
    *,
    size: int,
    generator: np.random.Generator,
    flip: float = 0.5,
    rotate: float = 10.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Resizes, perhaps mirrors, and turns one example, all its parts alike.

    Args:
      image: uint8 [height, width, 3].
      mask: uint8 [height, width], 0 or 1.
      superpixels: int32 [height, width], or None.
      size: side of the result, pixels.
      generator: draws two numbers, whatever the settings.
      flip: probability of mirroring left to right, 0 to 1.
      rotate: the angle is uniform between minus and plus this many degrees.

    Returns:
      Image uint8 [size, size, 3], mask uint8 [size, size], superpixels int32 [size, size] or None.
    """
    mirrored = generator.random() < flip
    degrees = generator.uniform(-1.0, 1.0) * rotate
    image = resize_image(image, size, size)
    parts = [resize_labels(part, size, size) for part in (mask, superpixels) if part is not None]
    if mirrored:
        image, *parts = (np.ascontiguousarray(part[:, ::-1]) for part in (image, *parts))
    if degrees != 0:
        image = rotate_image(image, degrees)
        parts = [rotate_labels(part, degrees) for part in parts]
    return image, parts[0], (parts[1] if superpixels is not None else None)


def _rotate(array: np.ndarray, degrees: float, interpolation: int) -> np.ndarray:
    height, width = array.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(
        array, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
