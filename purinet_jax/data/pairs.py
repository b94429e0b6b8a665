"""Data sets of images and their masks, read one pair at a time from a folder, an archive, or a prepared set.

`open_pairs` raises what is wrong with a data set as far as file names show it; `check_pairs` decodes every file.
"""

import hashlib
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

import numpy as np

from purinet_jax.data.images import check_image, read_rgb
from purinet_jax.data.layouts import Layout, Member, find_layouts, merged
from purinet_jax.data.masks import GREY, Coding, understand
from purinet_jax.data.sets import COPIES_OF_TEST_IMAGES, TWINS
from purinet_jax.data.storage import Prepared, Storage, open_storage, prepared_folder, prepared_splits
from purinet_jax.data.superpixel_files import find_superpixels, read_superpixels
from purinet_jax.devices import usable_cores
from purinet_jax.errors import InputError, summarise
from purinet_jax.progress import progress_bar
from purinet_jax.workers import in_order

logger = logging.getLogger(__name__)


class Example(TypedDict):
    """One pair.

    `image` uint8 [height, width, 3]; `mask` uint8 [height, width], 0 or 1; `superpixels` int32 [height, width], if the
    data set was opened with them; `index` in the data set.
    """

    image: np.ndarray
    mask: np.ndarray
    superpixels: NotRequired[np.ndarray]
    index: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and masks by index, as `open_pairs` found them. Can be pickled; each worker process opens its own files.

    Attributes:
      path: how errors name the data set.
      names: the files' names without extensions, sorted.
      storage: where the files are.
      images: the images' paths inside `storage`.
      masks: the masks' paths inside `storage`.
      sizes: of the files of image and mask, bytes.
      superpixels: the superpixels' files, by name.
      unpaired: files without a counterpart, if those were to be skipped.
      coding: how the masks are coded.
    """

    path: Path
    names: tuple[str, ...]
    storage: Storage
    images: tuple[str, ...]
    masks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    superpixels: Mapping[str, Path] | None = None
    unpaired: tuple[str, ...] = ()
    coding: Coding = GREY

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Reads one pair.

        Raises:
          IndexError: the index is not in [0, length).
          InputError: a file cannot be used, or image and mask differ in size.
        """
        index = self._checked(index)
        image = read_rgb(self.storage.read(self.images[index]), self.image_path(index))
        mask = self._mask(index)
        self.check_sizes(index, image.shape[:2], mask.shape)
        example: Example = {"image": image, "mask": mask, "index": index}
        if self.superpixels is not None:
            example["superpixels"] = read_superpixels(self.superpixels[self.names[index]], *mask.shape)
        return example

    def grey_mask(self, index: int, data: bytes | None = None) -> np.ndarray:
        """Reads a mask, uint8 [height, width], 0 to 255 (object); `data` are the file's bytes, if they are known."""
        return self.coding.read(self.storage.read(self.masks[index]) if data is None else data, self.mask_path(index))

    def _mask(self, index: int) -> np.ndarray:
        return (self.grey_mask(index) >= 128).view(np.uint8)

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        return index

    def image_path(self, index: int) -> str:
        """Returns how messages name an image: the data set's path and the file's path inside."""
        return f"{self.path}/{self.images[index]}"

    def mask_path(self, index: int) -> str:
        """Returns how messages name a mask."""
        return f"{self.path}/{self.masks[index]}"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of names and file sizes; a folder, a zip of it and the set prepared from it share one.

        Labels that the user named change it, because they change the masks.
        """
        digest = hashlib.sha256(f"{self.coding.labels}".encode() if self.coding.labels else b"")
        for name, (image, mask) in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{image}\0{mask}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """Returns the pairs at these indices, in this order, indexed from 0 again.

        Raises:
          IndexError: there is no such index.
        """
        kept = [self._checked(index) for index in indices]

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[index] for index in kept)

        names, images = pick(self.names), pick(self.images)
        return replace(self, names=names, images=images, masks=pick(self.masks), sizes=pick(self.sizes))

    def without(self, bad: Iterable[int]) -> "Pairs":
        """Returns the pairs but those at the indices `bad`, indexed from 0 again."""
        return self.subset(sorted(set(range(len(self))) - set(bad)))

    def without_leaks(self) -> "Pairs":
        """Returns the pairs without copies of test images and second copies of images (`purinet_jax.data.sets`)."""
        present = set(self.names)
        return self.subset(
            index
            for index, name in enumerate(self.names)
            if name not in COPIES_OF_TEST_IMAGES and TWINS.get(name) not in present
        )

    def hold_out(self, count: int, seed: int) -> tuple["Pairs", "Pairs"]:
        """Splits off `count` pairs, drawn by the seed: returns the others, and those without superpixels; both sorted.

        Raises:
          InputError: no pair would be left.
        """
        if count >= len(self):
            raise InputError(f"{self.path}: holding out {count} of {len(self)} pairs leaves none to train on")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(sorted(order[count:])), replace(self.subset(sorted(order[:count])), superpixels=None)

    def check(self, index: int, max_regions: int | None = None) -> None:
        """Parses the files of one pair, faster than reading them.

        Raises:
          InputError: a file cannot be used, sizes differ, or superpixels have a label of `max_regions` or more.
        """
        image = check_image(self.storage.read(self.images[index]), self.image_path(index))
        self.check_sizes(index, image, self._mask(index).shape)
        if self.superpixels is not None:
            self.check_regions(index, read_superpixels(self.superpixels[self.names[index]], *image), max_regions)

    def check_regions(self, index: int, superpixels: np.ndarray, max_regions: int | None) -> None:
        """Raises InputError if a pair's superpixels have a label of `max_regions` or more; None for no bound."""
        # The device silently ignores labels out of range, which would change the loss.
        if max_regions is not None and (highest := int(superpixels.max())) >= max_regions:
            raise InputError(
                f"{self.image_path(index)}: its superpixels reach label {highest}, "
                f"but max_regions {max_regions} allows 0 to {max_regions - 1}"
            )

    def check_sizes(self, index: int, image: Sequence[int], mask: Sequence[int]) -> None:
        """Raises InputError if height and width of a pair's image and mask differ."""
        if tuple(image) != tuple(mask):
            raise InputError(
                f"{self.image_path(index)}: the image has {image[1]}×{image[0]} pixels, "
                f"but its mask {self.masks[index]} has {mask[1]}×{mask[0]}"
            )


def open_pairs(
    path: str | Path,
    *,
    superpixels: str | Path | None = None,
    skip_unpaired: bool = False,
    object_labels: Sequence[int] = (),
) -> Pairs:
    """Opens a data set: images and masks, paired by name.

    The two are recognised by their folders' names, in any case: `…Image`, `images`, `Imgs`, `im` and `…Mask`,
    `masks`, `GT`, `ground_truth`. The folders may be a few levels down, next to each other or further apart. If names
    do not tell, the files do: `0001.jpg` next to `0001.png`, or two folders of the same file names, of which one
    holds black-and-white images.

    Args:
      path: a folder, a zip or tar of it (read without unpacking), or a set that `purinet prepare` wrote, as
        `<output>/<name>:<split>`, where a set of one split needs no `:<split>`.
      superpixels: a folder of `<name>.mat` files, the authors' superpixels; None for no superpixels.
      skip_unpaired: whether to leave out images without a mask and masks without an image, rather than to refuse.
      object_labels: the values of masks that are object, of palettes their indices; empty to find out from the masks
        how they are coded (`purinet_jax.data.masks`). A prepared set's are known.

    Returns:
      The pairs, sorted by name.

    Raises:
      InputError: there is no such data set or split, it is empty, images and masks do not match, two files share a
        name, an archive's member leaves the folder, is a link or encrypted, an image has no superpixels, the masks'
        coding is ambiguous, or no mask holds an object, or all nothing else.
    """
    path = Path(path)
    pairs = _open_prepared(path)
    if pairs is None:
        storage = open_storage(path)
        layouts = find_layouts(storage)
        if not layouts:
            raise InputError(f"{path}: no folders of images and of masks, such as DUTS-TR-Image and DUTS-TR-Mask")
        surest = merged([layout for layout in layouts if layout.evidence == layouts[0].evidence])
        if len(surest) > 1:
            candidates = summarise([str(layout) for layout in surest], "candidate")
            raise InputError(f"{path}: more than one data set: {candidates}")
        pairs = with_coding(pairs_of(path, storage, surest[0], skip_unpaired), object_labels)
    elif object_labels:
        pairs = with_coding(pairs, object_labels)
    return pairs if superpixels is None else replace(pairs, superpixels=find_superpixels(superpixels, pairs.names))


def with_coding(pairs: Pairs, object_labels: Sequence[int] = ()) -> Pairs:
    """Returns the pairs with the coding of their masks, found out as `open_pairs` does."""
    return replace(pairs, coding=understand(pairs.path, pairs.masks, pairs.storage.read, object_labels))


def by_stem(path: Path, members: Iterable[str]) -> dict[str, str]:
    """Returns paths inside a data set by their names without extensions, by which images, masks and maps are paired.

    Raises:
      InputError: two paths share a name; the message names the data set by `path`.
    """
    found: dict[str, str] = {}
    for member in members:
        stem = os.path.splitext(member.rpartition("/")[2])[0]
        if stem in found:
            raise InputError(f"{path}: two files named {stem}: {found[stem]} and {member}")
        found[stem] = member
    return found


def _by_path(folder: PurePosixPath, files: Iterable[Member]) -> dict[str, str]:
    """Returns paths inside a data set by their paths below a folder, without extensions: cats/1 and dogs/1."""
    start = len(folder.parts) and len(f"{folder}/")
    return {os.path.splitext(member[start:])[0]: member for member, _ in files}


def counterparts(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Returns the names that both have, those that only the first and those that only the second has; all sorted."""
    both = tuple(sorted(first.keys() & second.keys()))
    return both, sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())


def pairs_of(path: Path, storage: Storage, layout: Layout, skip_unpaired: bool = False) -> Pairs:
    """Pairs the files of a layout, which `find_layouts` found in `storage`, by name; see `open_pairs`.

    Raises:
      InputError: images and masks do not match, or two files share a name.
    """
    sizes = dict((*layout.images, *layout.masks))
    try:
        images, masks = (by_stem(path, [member for member, _ in files]) for files in (layout.images, layout.masks))
    except InputError:
        images = _by_path(layout.image_folder, layout.images)
        masks = _by_path(layout.mask_folder, layout.masks)
        complete = len(images) == len(layout.images) and len(masks) == len(layout.masks)
        if not complete or images.keys() != masks.keys():
            raise
    names, without_mask, without_image = counterparts(images, masks)
    if without_mask and not skip_unpaired:
        raise InputError(f"{path}: no mask in {layout.mask_folder} for {summarise(without_mask, 'image')}")
    if without_image and not skip_unpaired:
        raise InputError(f"{path}: no image in {layout.image_folder} for {summarise(without_image, 'mask')}")
    return Pairs(
        path=path,
        names=names,
        storage=storage,
        images=tuple(images[name] for name in names),
        masks=tuple(masks[name] for name in names),
        sizes=tuple((sizes[images[name]], sizes[masks[name]]) for name in names),
        unpaired=(*(images[name] for name in without_mask), *(masks[name] for name in without_image)),
    )


def check_pairs(pairs: Pairs, workers: int = 0, progress: bool = True) -> list[tuple[int, str]]:
    """Parses every file of a data set, in threads (decoders release Python's lock).

    Args:
      pairs: the data set.
      workers: how many threads; 0 for one per core, at most 8.
      progress: whether to show a bar on stderr.

    Returns:
      Index and reason of each pair that cannot be used, in order; the reason names the file.
    """
    return list(_unusable(pairs, workers, progress))


def _unusable(pairs: Pairs, workers: int, progress: bool, max_regions: int | None = None) -> Iterator[tuple[int, str]]:
    """Yields what `check_pairs` returns, as soon as it is found."""

    def reason(index: int) -> str | None:
        try:
            pairs.check(index, max_regions)
        except InputError as error:
            return str(error)
        return None

    workers = workers or min(8, usable_cores())
    with ThreadPoolExecutor(workers) as pool:
        reasons = in_order(lambda index: pool.submit(reason, index), range(len(pairs)), 16 * workers)
        bar = progress_bar(reasons, total=len(pairs), shown=progress, desc="checking", unit="pair")
        yield from ((index, found) for index, found in enumerate(bar) if found is not None)


def bad_pairs(
    sources: Sequence[Pairs],
    skip_bad: bool,
    progress: bool = True,
    *,
    max_regions: int | None = None,
    share: slice = slice(None),
    gather: Callable[[np.ndarray], np.ndarray] = lambda found: found[None],
) -> list[list[int]]:
    """Checks data sets before they are used, and names in the log each pair that cannot be.

    Args:
      sources: the data sets.
      skip_bad: whether there may be such pairs.
      progress: whether to show bars on stderr.
      max_regions: as of `Pairs.check`.
      share: the indices of the pairs that this process checks, if several processes share the work.
      gather: stacks each process's verdicts, bool [pairs], to [processes, pairs]; `processes.from_all` does.

    Returns:
      For each data set, the indices of its pairs that cannot be used, the same in all processes.

    Raises:
      InputError: there are such pairs and `skip_bad` is false, or a data set has no others.
    """
    bad = []
    for pairs in sources:
        checked = range(len(pairs))[share]
        found = np.zeros(len(pairs), bool)
        for position, reason in _unusable(pairs.subset(checked), 0, progress, max_regions):
            logger.warning("%s", reason)
            found[checked[position]] = True
        bad.append(np.flatnonzero(gather(found).any(0)).tolist())
    count, total = sum(map(len, bad)), sum(map(len, sources))
    if count and not skip_bad:
        raise InputError(f"{count} of {total} pairs cannot be used (named above); --skip-bad leaves them out")
    for pairs, indices in zip(sources, bad, strict=True):
        if len(indices) == len(pairs):
            raise InputError(f"{pairs.path}: none of {len(pairs)} pairs can be used")
    return bad


def _open_prepared(path: Path) -> Pairs | None:
    """Opens a split of a prepared set; returns None if the path names no prepared set."""
    root, split = path, ""
    if not path.exists():
        name, _, split = path.name.rpartition(":")
        root = path.parent / name
    folder = prepared_folder(root)
    if folder is None:
        return None
    splits = prepared_splits(folder)
    if not split and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        listed = " or ".join(f"{root}:{known}" for known in sorted(splits))
        problem = f"has no split {split}" if split else f"has {len(splits)} splits"
        raise InputError(f"{path}: {problem}: {listed}")
    names = splits[split]["names"]
    return Pairs(
        path=path,
        names=tuple(names),
        storage=Prepared(path, folder, split),
        images=tuple(f"image/{name}" for name in names),
        masks=tuple(f"mask/{name}" for name in names),
        sizes=tuple((image, mask) for image, mask in splits[split]["sizes"]),
    )
