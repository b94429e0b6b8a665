"""Measures saliency maps against masks, each at its mask's size: maps that a network predicts, equal to those that
`purinet predict --no-refine` writes (but for images with a colour profile, which the field's programs ignore), or maps
from files. Worker processes measure; this process adds up in the images' order, so that the numbers are the same for
any number of workers, and keeps sums only, so that a data set may be of any length.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from purinet_jax.data.images import read_map, read_rgb
from purinet_jax.data.pairs import Pairs, by_stem, counterparts
from purinet_jax.data.results import without_results
from purinet_jax.errors import InputError, summarise
from purinet_jax.evaluation.methods import Files, GroundTruth, Method, Network, SavedMaps
from purinet_jax.evaluation.metrics import Measures, Protocol, Totals, measure
from purinet_jax.evaluation.paper import is_same_set
from purinet_jax.progress import progress_bar
from purinet_jax.workers import worker_processes

PROTOCOLS: tuple[Protocol, ...] = ("purnet", "pysod")
"""Both protocols, in the order of a table."""

WORST = 16
"""How many images `Evaluation.worst` holds."""


@dataclass(frozen=True, eq=False)
class ImageNumbers:
    """One image's numbers, float64 [protocols, numbers], in the order of the evaluation's protocols and of
    `purinet_jax.evaluation.metrics.NUMBERS`."""

    name: str
    numbers: np.ndarray


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The numbers of a method on a data set.

    Attributes:
      method: its name.
      ground_truth: the data set's name.
      totals: the sums over the images, by protocol.
      skipped: maps, masks and images that were left out because they have no counterpart.
      size: side of the network's input, pixels; None for maps from files.
      worst: name and mean absolute error, by the first protocol, of the `WORST` worst images, the worst first.
      per_image: each image's numbers, in the images' order, if requested.
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
        """How many images were measured."""
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
      protocols: protocols of the numbers (`purinet_jax.evaluation.metrics`), at least one.
      batch_size: how many images a network takes at once.
      workers: worker processes; with 0, this process measures.
      skip_unpaired: whether to leave out maps without a mask and masks without a map, instead of refusing them.
      per_image: whether to keep each image's numbers, a few hundred bytes per image.
      progress: whether to show progress on standard error.

    Returns:
      One evaluation per data set and method, ordered by data set.

    Raises:
      InputError: two methods or two data sets share a name, a data set is empty, files have no counterpart, a network
        is given masks without images, files cannot be used (all are tried, and the first few named), an image and its
        mask differ in size, or, with "pysod", a map and its mask; `batch_size` or `workers` is out of range.
    """
    _check_names("method", methods)
    _check_names("data set", ground_truths)
    if workers < 0:
        raise InputError(f"workers: must be at least 0, not {workers}")
    chosen = [(method, truth) for truth in ground_truths for method in methods]
    # Before anything is computed, so that a mismatch is reported at once.
    comparisons = [_compare(method, truth, tuple(protocols), skip_unpaired) for method, truth in chosen]
    evaluations = []
    # Workers are sent the comparisons once, because names of thousands of files are too large to send with each image.
    with worker_processes(workers, _measure, [comparison for comparison, _ in comparisons]) as measured:
        for index, ((method, truth), (comparison, skipped)) in enumerate(zip(chosen, comparisons, strict=True)):
            with closing(_maps(method, comparison, batch_size)) as maps:
                results = progress_bar(
                    measured((index, *item) for item in enumerate(maps)),
                    total=len(comparison.names),
                    shown=progress,
                    desc=f"{method.name}, {truth.name}",
                    unit="image",
                )
                totals, worst, numbers = _add_up(comparison, results, per_image)
            size = method.predictor.size if isinstance(method, Network) else None
            evaluations.append(Evaluation(method.name, truth.name, totals, skipped, size, worst, numbers))
    return evaluations


def examples(
    method: Method, truth: GroundTruth, names: Sequence[str], *, batch_size: int = 1
) -> Iterator[tuple[np.ndarray | None, np.ndarray, np.ndarray]]:
    """Yields a few images with their masks and a method's maps, read or predicted once more.

    Args:
      method: the method.
      truth: the data set.
      names: the images' names.
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
        for index, predicted in enumerate(maps):
            mask, saliency, _ = comparison.read(index, predicted)
            yield None if pairs is None else _read_image(pairs, index), mask, saliency


@dataclass(frozen=True, eq=False)
class _Comparison:
    """What a worker process must know of a method and a data set: the `names` of the images, their masks, the maps in
    files or, for a network, the pairs, and the protocols."""

    names: tuple[str, ...]
    masks: Files
    maps: Files | None
    pairs: Pairs | None
    protocols: tuple[Protocol, ...]

    def read(self, index: int, predicted: np.ndarray | InputError | None) -> tuple[np.ndarray, np.ndarray, str]:
        """An image's mask, its map (the one that a network predicted, or None) and the map's name in errors."""
        if isinstance(predicted, InputError):
            raise predicted
        name = self.names[index]
        # `Pairs` reads masks as binary, by neither protocol's rule.
        mask = self.masks.read_mask(name)
        if self.maps is not None:
            label = self.maps.label(name)
            return mask, read_map(self.maps.read(name), label), label
        assert predicted is not None
        assert self.pairs is not None
        self.pairs.check_sizes(index, predicted.shape, mask.shape)
        return mask, predicted, self.pairs.image_path(index)


def _measure(
    comparisons: Sequence[_Comparison], job: tuple[int, int, np.ndarray | InputError | None]
) -> list[Measures] | InputError:
    """Runs in a worker process: an image's measures by each protocol, or the error that prevents them."""
    comparison = comparisons[job[0]]
    try:
        mask, saliency, label = comparison.read(*job[1:])
        if saliency.shape != mask.shape and "pysod" in comparison.protocols:
            raise InputError(
                f"{label}: the map has {saliency.shape[1]}×{saliency.shape[0]} pixels, but its mask "
                f"{mask.shape[1]}×{mask.shape[0]}, which only the purnet protocol resizes to (--protocol purnet)"
            )
        return [measure(saliency, mask, protocol, label) for protocol in comparison.protocols]
    except InputError as error:
        return error


def _compare(
    method: Method, truth: GroundTruth, protocols: tuple[Protocol, ...], skip_unpaired: bool
) -> tuple[_Comparison, tuple[str, ...]]:
    """Pairs a method's maps with masks. Returns the files without a counterpart as well, including the data set's own.

    Raises InputError if there are such files that are not to be skipped, or nothing is left.
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
        lacking = [f"no map for {summarise(without_map, 'mask')}"] if without_map else []
        lacking += [f"no mask for {summarise(without_mask, 'map')}"] if without_mask else []
        raise InputError(f"{method.path}: in {truth.name}, {' and '.join(lacking)} (--skip-unpaired leaves them out)")
    if not names:
        raise InputError(f"{method.path}: no map has the name of a mask of {truth.name}")
    skipped = (
        *truth.unpaired,
        *(truth.masks.label(name) for name in without_map),
        *(maps.label(name) for name in without_mask),
    )
    return _Comparison(names, truth.masks, maps, None, protocols), skipped


def _maps_of(method: SavedMaps, truth: GroundTruth) -> Files:
    """A method's maps for a data set: those in folders of the set's name if there are any, else all."""

    def is_own(member: str) -> bool:
        return any(is_same_set(part, truth.name) for part in PurePosixPath(member).parts[:-1])

    own = list(filter(is_own, method.members)) or method.members
    results, others = without_results(own, truth.masks.members)
    return Files(method.path, method.storage, by_stem(method.path, others) | results)


def _maps(method: Method, comparison: _Comparison, batch_size: int) -> Generator[np.ndarray | InputError | None]:
    """For each image a network's map, uint8 [height, width], or the error of an image that cannot be read; or None."""
    if isinstance(method, SavedMaps):
        yield from [None] * len(comparison.names)
        return
    # Imported here, so that maps from files are measured without JAX.
    from purinet_jax.prediction.predictor import predict_stream

    pairs = comparison.pairs
    assert pairs is not None

    yield from predict_stream(
        method.predictor, len(pairs), lambda index: _read_image(pairs, index), batch_size=batch_size
    )


def _read_image(pairs: Pairs, index: int) -> np.ndarray:
    return read_rgb(pairs.storage.read(pairs.images[index]), pairs.image_path(index))


def _add_up(
    comparison: _Comparison, results: Iterable[list[Measures] | InputError], per_image: bool
) -> tuple[dict[Protocol, Totals], tuple[tuple[str, float], ...], tuple[ImageNumbers, ...]]:
    """The totals, the worst images and, if requested, each image's numbers. Raises InputError for all bad files."""
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
        # Sorting is stable: of equally bad images the first is kept.
        worst = sorted([*worst, (name, result[0].mae)], key=lambda image: -image[1])[:WORST]
        if per_image:
            rows = np.array([list(measures.numbers().values()) for measures in result])
            numbers.append(ImageNumbers(name, rows))
    if bad:
        more = f"; and {len(bad) - 3} more files" if len(bad) > 3 else ""
        raise InputError("; ".join(map(str, bad[:3])) + more)
    return totals, tuple(worst), tuple(numbers)


def _check_names(what: str, named: Sequence[Method | GroundTruth]) -> None:
    names = [each.name for each in named]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: more than one {what} of this name; NAME=PATH gives another one")
