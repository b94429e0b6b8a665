"""The seven data sets as TFDS builders, written as ArrayRecord files, which need no TensorFlow.

Importing this module registers them:
`import purinet_jax.data.builders; tfds.builder("duts", data_dir=…).as_data_source("train")`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from purinet_jax.data import sets
from purinet_jax.data.images import is_plain, read_map, read_rgb, to_png
from purinet_jax.data.pairs import Pairs
from purinet_jax.data.sources import find_splits
from purinet_jax.devices import usable_cores
from purinet_jax.progress import progress_bar
from purinet_jax.workers import in_order

Record = dict[str, bytes]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing, because looking in TFDS' bucket leaves a temporary folder behind."""


class SalientSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The builder of a `SALIENT_SET`. Examples are stored in the order of their names.

    Index i of a split is `info.metadata["splits"][split]["names"][i]`.
    """

    VERSION = tfds.core.Version(sets.VERSION)
    RELEASE_NOTES: ClassVar = {"1.0.0": "Images, masks in grey values, names."}
    # TFDS 4.9.10 needs a package that it does not install (importlib_resources) to look for checksums of downloads.
    url_infos = None
    SALIENT_SET: ClassVar[sets.SalientSet]

    def __init__(
        self,
        *,
        sources: Mapping[str, Pairs] | None = None,
        left_out: Mapping[str, Sequence[int]] | None = None,
        progress: bool = False,
        file_format: Any = "array_record",
        **arguments: Any,
    ) -> None:
        """Makes the builder; arguments in addition to those of `tfds.core.DatasetBuilder`.

        Args:
          sources: the pairs to build from, by split; None for those found in the manual folder.
          left_out: indices of the pairs of a split to leave out.
          progress: whether to show a bar, which unlike that of TFDS knows the number of pairs.
        """
        self._sources = sources
        self._left_out = left_out or {}
        self._progress = progress
        super().__init__(file_format=file_format, **arguments)

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:
        """Shown by TFDS if the manual folder is missing."""
        known = self.SALIENT_SET
        return f"{known.name} is expected as {known.archives}, packed or unpacked; see {known.homepage}"

    def _info(self) -> tfds.core.DatasetInfo:
        known = self.SALIENT_SET
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="RGB, upright."),
            "mask": tfds.features.Image(
                shape=(None, None, 1), encoding_format="png", doc="Grey values: 255 is object, 0 is background."
            ),
            "name": tfds.features.Text(doc="The file's name without extension."),
        }
        # A set that release 0.2 built may have superpixels as well; without features TFDS reads its files.
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
            pairs = kept[split] = source.without(left_out)
            noted[split] = {
                "names": pairs.names,
                "sizes": pairs.sizes,
                "left_out": [source.names[index] for index in left_out],
                "source": source.fingerprint,
            }
        self.info.metadata.update(splits=noted)
        return {split: self._generate_examples(split, pairs) for split, pairs in kept.items()}

    def _download_and_prepare(self, *arguments: Any, **settings: Any) -> None:
        # TFDS sorts a large split in files, through TensorFlow; these are sorted already and fit into memory.
        with tfds.core.utils.temporary_assignment(shuffle, "MAX_MEM_BUFFER_SIZE", sys.maxsize):
            super()._download_and_prepare(*arguments, **settings)

    def _generate_examples(self, split: str, pairs: Pairs) -> Iterator[tuple[int, Record]]:
        cores = usable_cores()
        with ThreadPoolExecutor(cores) as pool:
            records = in_order(lambda index: pool.submit(record, pairs, index), range(len(pairs)), 4 * cores)
            yield from enumerate(progress_bar(records, total=len(pairs), shown=self._progress, desc=split, unit="pair"))


# TFDS derives the builders' names, such as duts and dut_omron, from those of their classes.
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
    """Returns the `image` and `mask` of a pair as files, and its `name`.

    A file that every reader decodes to the same pixels is kept as it is; others become PNG files of what `read_rgb`
    and `Pairs.grey_mask` return.

    Raises:
      InputError: a file cannot be used, or image and mask differ in size.
    """
    stored_image, stored_mask = pairs.storage.read(pairs.images[index]), pairs.storage.read(pairs.masks[index])
    image, mask = read_rgb(stored_image, pairs.image_path(index)), pairs.grey_mask(index, stored_mask)
    pairs.check_sizes(index, image.shape[:2], mask.shape)
    if not is_plain(stored_image, ("JPEG", "L"), ("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGB")):
        stored_image = to_png(image)
    # A mask of zeros and ones may be a plain PNG, but other readers do not stretch its values.
    if not is_plain(stored_mask, ("PNG", "L")) or not np.array_equal(read_map(stored_mask), mask):
        stored_mask = to_png(mask)
    name = pairs.names[index].encode("utf-8", "surrogateescape")
    return {"image": stored_image, "mask": stored_mask, "name": name}
