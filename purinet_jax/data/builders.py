"""The seven data sets as TFDS builders, written as ArrayRecord files, which need no TensorFlow. Importing this module
makes them known to TFDS: `import purinet_jax.data.builders; tfds.builder("duts", data_dir=…).as_data_source("train")`.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tqdm import tqdm

from purinet_jax.data import sets
from purinet_jax.data.images import is_plain, read_grey, read_rgb, read_values, to_png
from purinet_jax.data.pairs import Pairs, SuperpixelSource, superpixel_kind, superpixel_source
from purinet_jax.data.sources import find_splits
from purinet_jax.data.superpixel_files import SuperpixelCache
from purinet_jax.errors import InputError
from purinet_jax.workers import worker_processes

Record = dict[str, bytes | str]


class _Info(tfds.core.DatasetInfo):
    """What TFDS knows of a data set."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS' own sets are described in a bucket of Google's, and looking there leaves a folder behind
        in the one for temporary files."""


class SalientSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the seven builders share: features, where the data are found, and how examples are made.

    Examples are stored in the order of their names: index i of a split is
    `info.metadata["splits"][split]["names"][i]`.
    """

    VERSION = tfds.core.Version(sets.VERSION)
    RELEASE_NOTES: ClassVar = {"1.0.0": "Images, masks in grey values, superpixels, names."}
    # Nothing is downloaded, and TFDS 4.9.10 needs a package it does not install (importlib_resources) to look for
    # checksums.
    url_infos = None
    SALIENT_SET: ClassVar[sets.SalientSet]

    def __init__(
        self,
        *,
        superpixels: str | Path | None = "slic",
        sources: Mapping[str, Pairs] | None = None,
        left_out: Mapping[str, Sequence[int]] | None = None,
        workers: int = 0,
        progress: bool = False,
        file_format: Any = "array_record",
        **arguments: Any,
    ) -> None:
        """Makes the builder.

        Args:
          superpixels: "slic" to compute them; a folder of `.mat` or `.png` files with the images' names; None for a
            set without.
          sources: what to build from, by split; None for what is found in the manual folder.
          left_out: indices of the pairs of a split to leave out.
          workers: processes that compute; 0 for none but this one.
          progress: whether to show a bar of our own, which unlike TFDS' knows the number of pairs.
          file_format: of the files to write.
          **arguments: see `tfds.core.DatasetBuilder`.
        """
        self._superpixels = superpixels
        self._sources = sources
        self._left_out = left_out or {}
        self._workers = workers
        self._progress = progress
        super().__init__(file_format=file_format, **arguments)

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:
        """Shown by TFDS where the manual folder is missing."""
        known = self.SALIENT_SET
        return f"{known.name} is looked for as {known.archives}, packed or unpacked; see {known.homepage}"

    def _info(self) -> tfds.core.DatasetInfo:
        known = self.SALIENT_SET
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="RGB, upright."),
            "mask": tfds.features.Image(
                shape=(None, None, 1), encoding_format="png", doc="Grey values: 255 is object, 0 is ground."
            ),
            "name": tfds.features.Text(doc="The file's name without ending."),
        }
        if self._superpixels is not None:
            features["superpixels"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png", doc="Labels from 0."
            )
        # A set that is there may have been built with or without superpixels; without features TFDS asks its files.
        built = (self.data_path / "features.json").exists()
        return _Info(
            builder=self,
            description=known.description,
            features=None if built else tfds.features.FeaturesDict(features),
            homepage=known.homepage,
            citation=known.citation,
            license=f"{known.name}: {known.licence}.",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        sources = self._sources
        if sources is None:
            sources = find_splits(self.SALIENT_SET, dl_manager.manual_dir)
        noted, kept = {}, {}
        for split, source in sources.items():
            left_out = self._left_out.get(split, ())
            pairs = kept[split] = source.subset(sorted(set(range(len(source))) - set(left_out)))
            noted[split] = {
                "names": pairs.names,
                "sizes": pairs.sizes,
                "left_out": [source.names[index] for index in left_out],
                "source": source.fingerprint,
            }
        self.info.metadata.update(superpixels=superpixel_kind(self._superpixels), splits=noted)
        return {split: self._generate_examples(split, pairs) for split, pairs in kept.items()}

    def _download_and_prepare(self, *arguments: Any, **settings: Any) -> None:
        # From some size on TFDS sorts a split in files, through TensorFlow. Ours are sorted, and fit into memory.
        with tfds.core.utils.temporary_assignment(shuffle, "MAX_MEM_BUFFER_SIZE", sys.maxsize):
            super()._download_and_prepare(*arguments, **settings)

    def _generate_examples(self, split: str, pairs: Pairs) -> Iterator[tuple[int, Record]]:
        pairs = replace(pairs, superpixels=self._superpixel_source(split, pairs))
        with worker_processes(self._workers, record, pairs) as records:
            made = records(range(len(pairs)))
            yield from enumerate(tqdm(made, split, len(pairs), unit="pair", disable=not self._progress))

    def _superpixel_source(self, split: str, pairs: Pairs) -> SuperpixelSource | None:
        if self._superpixels is None:
            return None
        if self._superpixels != "slic":
            return superpixel_source(pairs, self._superpixels)
        # Kept until the set is built: whatever stops the building, the next one goes on.
        folder = self._computed / split
        folder.mkdir(parents=True, exist_ok=True)
        return SuperpixelCache(folder)

    @property
    def _computed(self) -> Path:
        return Path(self.data_dir_root) / f"{self.name}.superpixels"

    def _post_download_and_prepare_hook(self) -> None:
        shutil.rmtree(self._computed, ignore_errors=True)


# A class for each set: TFDS knows builders by their classes' names, of which it makes duts, dut_omron and so on.
BUILDERS = {
    key: type(
        key.title().replace("_", ""),
        (SalientSetBuilder,),
        {
            "SALIENT_SET": known,
            "__module__": __name__,
            "__doc__": f"{known.name}, split{'s' * (len(known.counts) > 1)} {' and '.join(known.counts)}.",
        },
    )
    for key, known in sets.SETS.items()
}
"""The builders of all sets, by key."""


def record(pairs: Pairs, index: int) -> Record:
    """One example as it is stored.

    Args:
      pairs: the data set.
      index: 0 to length - 1.

    Returns:
      `image`, `mask` and, if the data set has them, `superpixels` (16-bit) as files, and `name`. A file that every
      reader understands alike is kept as it is; others become PNG files of what `read_rgb` and `read_grey` see.

    Raises:
      InputError: a file cannot be used, image and mask differ in size, or a label is above 65,535.
    """
    stored_image, stored_mask = pairs.storage.read(pairs.images[index]), pairs.storage.read(pairs.masks[index])
    image, mask = read_rgb(stored_image, pairs.image_path(index)), read_grey(stored_mask, pairs.mask_path(index))
    pairs.check_sizes(index, image.shape[:2], mask.shape)
    if not is_plain(stored_image, ("JPEG", "L"), ("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGB")):
        stored_image = to_png(image)
    # A mask of zeros and ones may be a plain PNG, and yet other readers see other grey values than `read_grey`.
    if not is_plain(stored_mask, ("PNG", "L")) or not np.array_equal(read_values(stored_mask)[0], mask):
        stored_mask = to_png(mask)
    example: Record = {"image": stored_image, "mask": stored_mask, "name": pairs.names[index]}
    if pairs.superpixels is not None:
        labels = pairs.superpixels.get(pairs.names[index], image)
        if labels.max() > 65_535:
            raise InputError(f"{pairs.image_path(index)}: its superpixels reach label {labels.max()}, above 65535")
        example["superpixels"] = to_png(labels.astype(np.uint16))
    return example
