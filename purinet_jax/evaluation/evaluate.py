"""Measures saliency maps against masks, each at its mask's own size: the maps that a network predicts, which are the
very ones that `purinet predict --no-refine` writes (but for images with a colour profile, which the field's programs
ignore), or anyone's that lie in files. Worker processes measure; this one adds up in the images' order, so that the
numbers are the same for any number of workers, and keeps nothing but sums, so that a data set may be of any length.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from purinet_jax.data.images import read_grey, read_map, read_rgb
from purinet_jax.data.pairs import Pairs, by_stem, counterparts, some
from purinet_jax.errors import InputError
from purinet_jax.evaluation.methods import Files, GroundTruth, Maps, Method, Network
from purinet_jax.evaluation.metrics import Measures, Protocol, Totals, measure
from purinet_jax.evaluation.paper import is_same_set
from purinet_jax.workers import worker_processes

PROTOCOLS: tuple[Protocol, ...] = ("purnet", "pysod")
"""Both, in the order of a table."""

WORST = 16
"""How many of the worst images an `Evaluation` names."""


@dataclass(frozen=True, eq=False)
class ImageNumbers:
    """One image's numbers: float64 [protocols, numbers], in the order of the evaluation's protocols and of `NUMBERS`
    in `purinet_jax.evaluation.metrics`."""

    name: str
    numbers: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a method reaches on a data set.

    Attributes:
      method: its name.
      ground_truth: the data set's name.
      totals: the sums over the images, by protocol.
      skipped: what was left out: maps, masks or images without a counterpart.
      size: side of the network's input, pixels; None for maps from files.
      worst: name and mean absolute error, by the first protocol, of the `WORST` worst images, the worst first.
      per_image: each image's numbers, in the images' order, if they were asked for.
    """

    method: str
    ground_truth: str
    totals: Mapping[Protocol, Totals]
    skipped: tuple[str, ...]
    size: int | None
    worst: tuple[tuple[str, float], ...]
    per_image: tuple[ImageNumbers, ...] = ()

    @property
    def images(self) -> int:
        """How many were measured."""
        return next(iter(self.totals.values())).images


def evaluate(
    methods: Sequence[Method],
    ground_truths: Sequence[GroundTruth],
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    batch_size: int = 1,
    workers: int = 0,
    skip_unpaired: bool = False,
    per_image: bool = False,
    progress: bool = True,
) -> list[Evaluation]:
    """Measures every method on every data set.

    Args:
      methods: networks and maps from files, of different names.
      ground_truths: the data sets, of different names.
      protocols: whose rules the numbers follow (`purinet_jax.evaluation.metrics`), at least one.
      batch_size: how many images a network takes at once.
      workers: processes that measure; 0 for none but this one.
      skip_unpaired: whether to leave out maps without a mask and masks without a map, rather than to refuse.
      per_image: whether to keep each image's numbers, a few hundred bytes an image.
      progress: whether to show bars on stderr.

    Returns:
      One evaluation for each data set and method, the methods of a data set in a row.

    Raises:
      InputError: two methods or two data sets share a name, a data set is empty, there are files without a
        counterpart, a network is given masks alone, files cannot be used (all of a method and data set are tried, and
        the first few named), an image and its mask differ in size, or, with "pysod", a map and its mask; `batch_size`
        or `workers` is out of range.
    """
    _check_names("method", [method.name for method in methods])
    _check_names("data set", [truth.name for truth in ground_truths])
    if workers < 0:
        raise InputError(f"workers: must be at least 0, not {workers}")
    chosen = [(method, truth) for truth in ground_truths for method in methods]
    # All of them first: what does not match is said before anything is computed.
    comparisons = [_compare(method, truth, tuple(protocols), skip_unpaired) for method, truth in chosen]
    evaluations = []
    # With the names of thousands of files, what is compared is too large to go along with each image.
    with worker_processes(workers, _measure, [comparison for comparison, _ in comparisons]) as measured:
        for number, ((method, truth), (comparison, skipped)) in enumerate(zip(chosen, comparisons, strict=True)):
            with closing(_maps(method, comparison, batch_size)) as maps:
                results = _bar(
                    measured((number, item) for item in maps),
                    len(comparison.names),
                    f"{method.name}, {truth.name}",
                    progress,
                )
                totals, worst, numbers = _add_up(comparison, results, per_image)
            size = method.predictor.size if isinstance(method, Network) else None
            evaluations.append(Evaluation(method.name, truth.name, totals, skipped, size, worst, numbers))
    return evaluations


def examples(
    method: Method, truth: GroundTruth, names: Sequence[str], *, batch_size: int = 1
) -> Iterator[tuple[np.ndarray | None, np.ndarray, np.ndarray]]:
    """A few images with their masks and a method's maps, read or predicted once more.

    Args:
      method: the method.
      truth: the data set.
      names: of the images.
      batch_size: how many images a network takes at once.

    Yields:
      Image uint8 [height, width, 3], None where only masks are known; mask uint8 [height, width], 0 to 255; map
      [height, width] as `read_map` gives it.

    Raises:
      InputError: a file cannot be used.
    """
    pairs = truth.pairs
    if pairs is not None:
        indices = {name: index for index, name in enumerate(pairs.names)}
        pairs = pairs.subset(indices[name] for name in names)
    comparison, _ = _compare(method, replace(truth, pairs=pairs), (), skip_unpaired=True)
    comparison = replace(comparison, names=tuple(names))
    with closing(_maps(method, comparison, batch_size)) as maps:
        for item in maps:
            if isinstance(item, InputError):
                raise item
            mask, saliency, _ = comparison.read(*item)
            yield None if pairs is None else _read_image(pairs, item[0]), mask, saliency


_Item = tuple[int, np.ndarray | None]
"""Index of an image, and its map if it comes from a network."""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """What a worker process must know of a method and a data set: the `names` that are measured; masks; the maps, or,
    for a network's, the pairs of image and mask, whose names these are; protocols."""

    names: tuple[str, ...]
    masks: Files
    maps: Files | None
    pairs: Pairs | None
    protocols: tuple[Protocol, ...]

    def read(self, index: int, saliency: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, str]:
        """Mask, map (the one given, if it is a network's) and how errors call it."""
        name = self.names[index]
        # Not as `Pairs` reads it: there the mask is cut already, by neither protocol's rule.
        mask = read_grey(self.masks.read(name), self.masks.label(name))
        if self.maps is not None:
            label = self.maps.label(name)
            return mask, read_map(self.maps.read(name), label), label
        assert saliency is not None
        assert self.pairs is not None
        self.pairs.check_sizes(index, saliency.shape, mask.shape)
        return mask, saliency, self.pairs.image_path(index)

    def measure(self, item: _Item | InputError) -> list[Measures] | InputError:
        """An image's measures by each protocol, or why there are none."""
        if isinstance(item, InputError):
            return item
        try:
            mask, saliency, label = self.read(*item)
            if saliency.shape != mask.shape and "pysod" in self.protocols:
                raise InputError(
                    f"{label}: the map has {saliency.shape[1]}×{saliency.shape[0]} pixels, but its mask "
                    f"{mask.shape[1]}×{mask.shape[0]}, which only the purnet protocol resizes to (--protocol purnet)"
                )
            return [measure(saliency, mask, protocol, label) for protocol in self.protocols]
        except InputError as error:
            return error


def _compare(
    method: Method, truth: GroundTruth, protocols: tuple[Protocol, ...], skip_unpaired: bool
) -> tuple[_Comparison, tuple[str, ...]]:
    """Pairs a method's maps with masks. Returns what has no counterpart as well, that of the data set itself included.

    Raises InputError if there is such and it is not to be skipped, or nothing is left.
    """
    if isinstance(method, Network):
        if truth.pairs is None:
            raise InputError(f"{truth.masks.path}: masks alone, from which {method.name} can predict nothing")
        if len(truth.pairs) == 0:
            raise InputError(f"{truth.masks.path}: no pairs are left to measure on")
        return _Comparison(truth.pairs.names, truth.masks, None, truth.pairs, protocols), truth.unpaired
    maps = _maps_of(method, truth)
    names, without_map, without_mask = counterparts(truth.masks.members, maps.members)
    if (without_map or without_mask) and not skip_unpaired:
        lacking = [f"no map for {some(without_map, 'mask')}"] if without_map else []
        lacking += [f"no mask for {some(without_mask, 'map')}"] if without_mask else []
        raise InputError(f"{method.path}: in {truth.name}, {' and '.join(lacking)} (--skip-unpaired leaves them out)")
    if not names:
        raise InputError(f"{method.path}: no map has the name of a mask of {truth.name}")
    skipped = (
        *truth.unpaired,
        *(truth.masks.label(name) for name in without_map),
        *(maps.label(name) for name in without_mask),
    )
    return _Comparison(names, truth.masks, maps, None, protocols), skipped


def _maps_of(method: Maps, truth: GroundTruth) -> Files:
    """A method's maps for a data set: those in folders of the set's name, if there are any, or else all."""
    own = [
        member
        for member in method.members
        if any(is_same_set(part, truth.name) for part in PurePosixPath(member).parts[:-1])
    ]
    return Files(method.path, method.storage, by_stem(method.path, own or method.members))


def _maps(method: Method, comparison: _Comparison, batch_size: int) -> Generator[_Item | InputError]:
    """Each image's index and a network's map, uint8 [height, width], or the error of an image that cannot be read."""
    if isinstance(method, Maps):
        yield from ((index, None) for index in range(len(comparison.names)))
        return
    # Here, so that maps from files are measured without JAX.
    from purinet_jax.prediction.predictor import predict_stream

    pairs = comparison.pairs
    assert pairs is not None

    def read(index: int) -> tuple[np.ndarray, None]:
        return _read_image(pairs, index), None

    def finish(index: int, saliency: np.ndarray, _: None) -> _Item:
        return index, saliency

    with closing(predict_stream(method.predictor, len(pairs), read, finish, batch_size=batch_size)) as maps:
        yield from maps


def _read_image(pairs: Pairs, index: int) -> np.ndarray:
    return read_rgb(pairs.storage.read(pairs.images[index]), pairs.image_path(index))


def _measure(comparisons: Sequence[_Comparison], item: tuple[int, _Item | InputError]) -> list[Measures] | InputError:
    """In a worker process: the measures of an image of the comparison of this number."""
    number, image = item
    return comparisons[number].measure(image)


def _bar(
    results: Iterable[list[Measures] | InputError], count: int, what: str, progress: bool
) -> Iterable[list[Measures] | InputError]:
    from tqdm import tqdm

    return tqdm(results, what, count, unit="image", disable=not progress)


def _add_up(
    comparison: _Comparison, results: Iterable[list[Measures] | InputError], per_image: bool
) -> tuple[dict[Protocol, Totals], tuple[tuple[str, float], ...], tuple[ImageNumbers, ...]]:
    """The totals, the worst images and, if asked for, each image's numbers. Raises InputError for all bad files."""
    totals = {protocol: Totals(protocol) for protocol in comparison.protocols}
    worst: list[tuple[str, float]] = []
    numbers: list[ImageNumbers] = []
    bad: list[InputError] = []
    for name, result in zip(comparison.names, results, strict=True):
        if isinstance(result, InputError):
            bad.append(result)
            continue
        for protocol, measures in zip(comparison.protocols, result, strict=True):
            totals[protocol] += measures
        # Of equally bad ones the first is kept: sorting does not change their order.
        worst = sorted([*worst, (name, result[0].mae)], key=lambda image: -image[1])[:WORST]
        if per_image:
            rows = [list(measures.numbers().values()) for measures in result]
            numbers.append(ImageNumbers(name, np.array(rows)))
    if bad:
        more = f"; and {len(bad) - 3} more files" if len(bad) > 3 else ""
        raise InputError("; ".join(map(str, bad[:3])) + more)
    return totals, tuple(worst), tuple(numbers)


def _check_names(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: more than one {what} of this name; NAME=PATH gives another one")
