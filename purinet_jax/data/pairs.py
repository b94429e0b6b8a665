"""Data sets of images and their masks, read one pair at a time: from a folder, straight from an archive, or from a set
that `purinet prepare` wrote. What is wrong with a data set is said when it is opened, as far as names can tell, and
by `check_pairs`, which decodes every file.
"""

import hashlib
import itertools
import logging
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from purinet_jax.data.images import check_image, read_mask, read_rgb
from purinet_jax.data.layouts import Layout, find_layouts
from purinet_jax.data.sets import COPIES_OF_TEST_IMAGES, TWINS
from purinet_jax.data.storage import (
    Prepared,
    PreparedSuperpixels,
    Storage,
    open_storage,
    prepared_folder,
    prepared_metadata,
)
from purinet_jax.data.superpixel_files import SuperpixelCache, SuperpixelFolder, cache_folder
from purinet_jax.errors import InputError

logger = logging.getLogger(__name__)


class Example(TypedDict):
    """One pair: `image` uint8 [height, width, 3]; `mask` uint8 [height, width], 0 or 1; `superpixels` int32
    [height, width], if the data set was opened with them; `index` in the data set."""

    image: np.ndarray
    mask: np.ndarray
    superpixels: NotRequired[np.ndarray]
    index: int


class SuperpixelSource(Protocol):
    """Where a pair's superpixels come from; `purinet_jax.data.superpixel_files` has the two kinds."""

    def get(self, name: str, image: np.ndarray) -> np.ndarray:
        """Labels int32 [height, width], from 0, of the image uint8 [height, width, 3] of this name."""
        ...

    def check(self, name: str, height: int, width: int) -> None:
        """Raises InputError where `get` would, as far as that is known beforehand."""
        ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and masks by index, as `open_pairs` found them. Can be pickled; a worker process opens its own
    files.

    `names` are the files' names without endings, sorted. `images` and `masks` are their paths inside `storage`.
    `sizes` are those of the files of image and mask, bytes. `unpaired` are files without a counterpart, where such were
    to be skipped.
    """

    path: Path
    names: tuple[str, ...]
    storage: Storage
    images: tuple[str, ...]
    masks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    superpixels: SuperpixelSource | None = None
    unpaired: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Reads one pair.

        Args:
          index: 0 to length - 1.

        Returns:
          An `Example`.

        Raises:
          IndexError: there is no such index.
          InputError: a file cannot be used, or image and mask differ in size.
        """
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        image = read_rgb(self.storage.read(self.images[index]), self.image_path(index))
        mask = read_mask(self.storage.read(self.masks[index]), self.mask_path(index))
        self.check_sizes(index, image.shape[:2], mask.shape)
        example: Example = {"image": image, "mask": mask, "index": index}
        if self.superpixels is not None:
            example["superpixels"] = self.superpixels.get(self.names[index], image)
        return example

    def image_path(self, index: int) -> str:
        """How messages name an image: the data set's path and the file's path inside."""
        return f"{self.path}/{self.images[index]}"

    def mask_path(self, index: int) -> str:
        """How messages name a mask."""
        return f"{self.path}/{self.masks[index]}"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over names and file sizes: another one means another data set. The same for a
        folder, for a zip of it, and for the set prepared from it."""
        digest = hashlib.sha256()
        for name, (image, mask) in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{image}\0{mask}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """The pairs at these indices, in this order, counted from 0 again.

        Raises:
          IndexError: there is no such index.
        """
        kept = [operator.index(index) for index in indices]
        for index in kept:
            if not 0 <= index < len(self):
                raise IndexError(f"index {index} of {len(self)} pairs")
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            images=tuple(self.images[index] for index in kept),
            masks=tuple(self.masks[index] for index in kept),
            sizes=tuple(self.sizes[index] for index in kept),
        )

    def without_leaks(self) -> "Pairs":
        """The pairs without the training copies of test images and without the second copy of each image that
        stands twice (`purinet_jax.data.sets`), found by their names."""
        present = set(self.names)
        return self.subset(
            index
            for index, name in enumerate(self.names)
            if name not in COPIES_OF_TEST_IMAGES and TWINS.get(name) not in present
        )

    def hold_out(self, count: int, seed: int) -> tuple["Pairs", "Pairs"]:
        """All pairs but `count` of them, drawn by the seed, and those, without superpixels; both in this order.

        Raises:
          InputError: no pair would be left.
        """
        if count >= len(self):
            raise InputError(f"{self.path}: holding out {count} of {len(self)} pairs leaves none to train on")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(sorted(order[count:])), replace(self.subset(sorted(order[:count])), superpixels=None)

    def check(self, index: int) -> None:
        """Parses the files of one pair, cheaper than reading them.

        Raises:
          InputError: a file cannot be used, or sizes differ.
        """
        image = check_image(self.storage.read(self.images[index]), self.image_path(index))
        mask = read_mask(self.storage.read(self.masks[index]), self.mask_path(index)).shape
        self.check_sizes(index, image, mask)
        if self.superpixels is not None:
            self.superpixels.check(self.names[index], *image)

    def check_sizes(self, index: int, image: Sequence[int], mask: Sequence[int]) -> None:
        """Compares height and width of a pair's image and mask. Raises InputError if they differ."""
        if tuple(image) != tuple(mask):
            raise InputError(
                f"{self.image_path(index)}: the image has {image[1]}×{image[0]} pixels, "
                f"but its mask {self.masks[index]} has {mask[1]}×{mask[0]}"
            )


def open_pairs(
    path: str | Path,
    *,
    superpixels: str | Path | None = None,
    superpixel_fallback: str | Path | None = None,
    skip_unpaired: bool = False,
) -> Pairs:
    """Opens a data set: images and masks, paired by name.

    The two are recognised by their folders' names, in any case: `…Image`, `images`, `Imgs`, `im` and `…Mask`,
    `masks`, `GT`, `ground_truth`. The folders may lie a few levels down, side by side or further apart. Where names
    say nothing, the files do: `0001.jpg` beside `0001.png`, or a folder of pictures in black and white beside another
    one of the same file names.

    Args:
      path: a folder, a zip or tar of it (read in place, not unpacked), or a set that `purinet prepare` wrote, as
        `<output>/<name>:<split>`, where a set of one split needs no `:<split>`.
      superpixels: "slic" to take those that a prepared set holds, or else to compute them, once, into `<path without
        .zip>.superpixels`; a folder of `.mat` or `.png` files with the images' names; None for no superpixels.
      superpixel_fallback: a folder for computed superpixels where the one beside the data set is not
        writable.
      skip_unpaired: whether to leave out images without a mask and masks without an image, rather than to refuse.

    Returns:
      The pairs, sorted by name.

    Raises:
      InputError: there is no such data set or split, it is empty, images and masks do not match, two files share a
        name, an archive's member leaves the folder, is a link or encrypted, or the superpixels have no place or are
        incomplete.
    """
    path = Path(path)
    pairs = _open_prepared(path)
    if pairs is None:
        storage = open_storage(path)
        layouts = find_layouts(storage)
        if not layouts:
            raise InputError(
                f"{path}: no folder of images beside a folder of masks, such as DUTS-TR-Image and DUTS-TR-Mask"
            )
        surest = [layout for layout in layouts if layout.evidence == layouts[0].evidence]
        if len(surest) > 1:
            raise InputError(f"{path}: more than one data set: {some([str(layout) for layout in surest], 'candidate')}")
        pairs = pairs_of(path, storage, surest[0], skip_unpaired)
    if superpixels is None:
        return replace(pairs, superpixels=None)
    if superpixels == "slic" and pairs.superpixels is not None:
        return pairs
    return replace(pairs, superpixels=superpixel_source(pairs, superpixels, superpixel_fallback))


def by_stem(path: Path, members: Iterable[str]) -> dict[str, str]:
    """Paths inside of a data set by their names without endings, by which images, masks and maps are paired.

    Raises InputError, in which the data set is called `path`, where two share a name.
    """
    found: dict[str, str] = {}
    for member in members:
        stem = PurePosixPath(member).stem
        if stem in found:
            raise InputError(f"{path}: two files named {stem}: {found[stem]} and {member}")
        found[stem] = member
    return found


def counterparts(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The names that both have, those that only the first has, and those that only the second has; all sorted."""
    both = tuple(sorted(first.keys() & second.keys()))
    return both, sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())


def pairs_of(path: Path, storage: Storage, layout: Layout, skip_unpaired: bool = False) -> Pairs:
    """Pairs the files of a layout by name.

    Args:
      path: what errors call the data set.
      storage: where the files lie.
      layout: one of those that `find_layouts` found there.
      skip_unpaired: as of `open_pairs`.

    Returns:
      The pairs, sorted by name.

    Raises:
      InputError: images and masks do not match, or two files share a name.
    """
    sizes = dict((*layout.images, *layout.masks))
    images = by_stem(path, (member for member, _ in layout.images))
    masks = by_stem(path, (member for member, _ in layout.masks))
    names, without_mask, without_image = counterparts(images, masks)
    if without_mask and not skip_unpaired:
        raise InputError(f"{path}: no mask in {layout.mask_folder} for {some(without_mask, 'image')}")
    if without_image and not skip_unpaired:
        raise InputError(f"{path}: no image in {layout.image_folder} for {some(without_image, 'mask')}")
    return Pairs(
        path=path,
        names=names,
        storage=storage,
        images=tuple(images[name] for name in names),
        masks=tuple(masks[name] for name in names),
        sizes=tuple((sizes[images[name]], sizes[masks[name]]) for name in names),
        unpaired=(*(images[name] for name in without_mask), *(masks[name] for name in without_image)),
    )


def superpixel_kind(superpixels: str | Path | None) -> str:
    """What a prepared set notes of its superpixels: "none", "slic" (computed) or "given"."""
    return "none" if superpixels is None else "slic" if superpixels == "slic" else "given"


def superpixel_source(pairs: Pairs, superpixels: str | Path, fallback: str | Path | None = None) -> SuperpixelSource:
    """Where a data set's superpixels come from, other than from itself; arguments and errors as of `open_pairs`."""
    if superpixels == "slic":
        return SuperpixelCache(cache_folder(pairs.path, fallback))
    source = SuperpixelFolder(superpixels)
    if lacking := source.missing(pairs.names):
        raise InputError(f"{superpixels}: no superpixels for {some(lacking, 'image')}")
    return source


def check_pairs(pairs: Pairs, workers: int = 0, progress: bool = True) -> list[tuple[int, str]]:
    """Parses every file of a data set, in threads (decoders let go of Python's lock).

    Args:
      pairs: the data set.
      workers: how many threads; 0 for one per CPU, at most 8.
      progress: whether to show a bar on stderr.

    Returns:
      Index and reason of each pair that cannot be used, in order; the reason names the file.
    """
    from tqdm import tqdm

    def reason(index: int) -> str | None:
        try:
            pairs.check(index)
        except InputError as error:
            return str(error)
        return None

    bad = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(reason, range(len(pairs)))
        bar = tqdm(reasons, total=len(pairs), desc="checking", unit="pair", disable=not progress)
        for index, found in enumerate(bar):
            if found is not None:
                bad.append((index, found))
    return bad


def bad_pairs(sources: Sequence[Pairs], skip_bad: bool, progress: bool = True) -> list[list[int]]:
    """Checks data sets before they are used, and names in the log each pair that cannot be.

    Args:
      sources: the data sets.
      skip_bad: whether there may be such pairs.
      progress: whether to show bars on stderr.

    Returns:
      For each data set, the indices of its pairs that cannot be used.

    Raises:
      InputError: there are such pairs and `skip_bad` is false, or a data set has no others.
    """
    bad = [check_pairs(pairs, progress=progress) for pairs in sources]
    for _, reason in itertools.chain(*bad):
        logger.warning("%s", reason)
    number, total = sum(map(len, bad)), sum(map(len, sources))
    if number and not skip_bad:
        raise InputError(f"{number} of {total} pairs cannot be used (named above); --skip-bad leaves them out")
    for pairs, found in zip(sources, bad, strict=True):
        if len(found) == len(pairs):
            raise InputError(f"{pairs.path}: none of {len(pairs)} pairs can be used")
    return [[index for index, _ in found] for found in bad]


def _open_prepared(path: Path) -> Pairs | None:
    """A split of a prepared set, with the superpixels it holds; None if the path names no prepared set."""
    place, split = path, ""
    if not path.exists():
        name, _, split = path.name.rpartition(":")
        place = path.parent / name
    folder = prepared_folder(place)
    if folder is None:
        return None
    metadata = prepared_metadata(folder)
    splits = sorted(metadata["splits"])
    if not split and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        listed = " or ".join(f"{place}:{known}" for known in splits)
        reason = f"has no split {split}" if split else f"has {len(splits)} splits"
        raise InputError(f"{path}: {reason}: {listed}")
    storage = Prepared(path, folder, split)
    held = metadata["splits"][split]
    return Pairs(
        path=path,
        names=tuple(held["names"]),
        storage=storage,
        images=tuple(f"image/{name}" for name in held["names"]),
        masks=tuple(f"mask/{name}" for name in held["names"]),
        sizes=tuple((image, mask) for image, mask in held["sizes"]),
        superpixels=PreparedSuperpixels(storage) if metadata["superpixels"] != "none" else None,
    )


def some(names: Sequence[str], what: str) -> str:
    """The number of names and the first few of them, for an error."""
    listed = ", ".join(names[:3])
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}: {listed}{', …' if len(names) > 3 else ''}"
