"""Find the images and videos that the user names: files, folders, patterns, pipes and the standard input.

Paths are strings, because hundreds of thousands of `Path` objects are slow and large.
"""

import glob
import logging
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from purinet_jax.data.images import EXTENSIONS
from purinet_jax.data.results import origin_of, own_results
from purinet_jax.errors import InputError
from purinet_jax.files import is_folder, reason
from purinet_jax.prediction.video import VIDEO_ENDINGS

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
"""Stands for the standard input."""

INPUT_ENDINGS = tuple(dict.fromkeys((*EXTENSIONS, *VIDEO_ENDINGS)))
"""Endings, in lower case, of the files that folders are searched for."""

_STANDARD_NAMES = (STANDARD_INPUT, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
_OWN_RESULT = "results of earlier runs"
_LISTED_KINDS = 5

Refuse = Callable[[str, InputError], None]


class Found(NamedTuple):
    """How an input was found.

    Attributes:
      below: path of its folder below the given folder or pattern.
      searched: whether it was found in a folder, where GIF files are images.
      piped: whether it can be read only once.
    """

    below: str = ""
    searched: bool = False
    piped: bool = False


def ending_of(path: str | os.PathLike[str]) -> str:
    """Returns a file name's ending in lower case: ".jpg"; empty if it has none."""
    return os.path.splitext(path)[1].lower()


def find_inputs(
    inputs: Sequence[str], output: str | None, *, videos: bool = True, errors: dict[str, str] | None = None
) -> dict[str, Found]:
    """Returns the files that the inputs name, those of a folder or pattern sorted; each once.

    Args:
      inputs, output: as of `prediction.files.plan`.
      videos: whether folders are searched for videos.
      errors: where errors of inputs and of subfolders are added, by their paths; if None, the first one is raised.

    Raises:
      InputError: as `plan`.
    """
    if not inputs:
        raise InputError("no images were named")

    def refuse(path: str, error: InputError) -> None:
        if errors is None:
            raise error
        errors[path] = str(error)

    found: dict[str, Found] = {}
    for text in inputs:
        if text in _STANDARD_NAMES:
            if len(inputs) > 1:
                raise InputError(f"{text}: the standard input cannot be one of several")
            return {STANDARD_INPUT: Found(piped=True)}
        try:
            for file, how in _find(text, output, videos, refuse).items():
                found.setdefault(file, how)
        except InputError as error:
            refuse(text, error)
    return found


def refuse_address(text: str, advice: str = "nothing is fetched; download it first") -> None:
    """Raises InputError if a path is an address, such as "https://example.org/photo.jpg"."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise InputError(f"{text}: is an address, and {advice}")


def _find(text: str, output: str | None, videos: bool, refuse: Refuse) -> dict[str, Found]:
    refuse_address(text)
    path = str(Path(text))
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null character
        raise InputError(f"{text}: no such file or folder") from error
    except OSError as error:
        if glob.has_magic(text):
            return _match(path, output)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{text}: no such file or folder") from error
        raise InputError(f"{text}: cannot be read: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        return _search(path, output, videos, refuse)
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise InputError(f"{text}: is a device or socket, not a file")
    return {path: Found(piped=stat.S_ISFIFO(mode))}


def _search(folder: str, output: str | None, videos: bool, refuse: Refuse) -> dict[str, Found]:
    """Searches a folder and its subfolders, without hidden files, the output folder and results of earlier runs."""
    root = "" if folder == "." else folder
    endings = INPUT_ENDINGS if videos else EXTENSIONS
    left_out = set() if output is None else {identity(output)} - {identity(folder)}
    passed_over: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    unread: list[str] = []

    def refuse_and_note(path: str, error: InputError) -> None:
        unread.append(path)
        refuse(path, error)

    for below, entries in _walk(folder, left_out, refuse_and_note):
        names: list[str] = []
        for entry in entries:
            if (ending := ending_of(entry.name)) in endings and _may_be_file(entry):
                names.append(entry.name)
            else:
                passed_over[ending or "without an ending"] += 1
        results = own_results(names)
        passed_over[_OWN_RESULT] += len(results)
        found += ((below, name) for name in names if name not in results)
    _say_passed_over(folder, passed_over)
    if not found and not unread:
        hint = "only what an earlier run wrote" if passed_over[_OWN_RESULT] else ", ".join(EXTENSIONS)
        raise InputError(f"{folder}: holds no images ({hint})")
    found.sort(key=lambda file: (*file[0].split(os.sep), file[1]) if file[0] else (file[1],))
    hows = {below: Found(below, searched=True) for below, _ in found}
    return {os.path.join(root, below, name): hows[below] for below, name in found}


def _walk(
    folder: str, left_out: Iterable[tuple[int, int] | None], refuse: Refuse
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yields the paths of a folder ("") and its subfolders, and what they hold other than folders; nothing hidden.

    Linked subfolders are searched after the others, and no folder twice, nor those of the identities `left_out`.
    """
    visited = set(left_out) - {None}
    subfolders, links = [""], deque[str]()
    while subfolders or links:
        below = subfolders.pop() if subfolders else links.popleft()
        path = os.path.join(folder, below) if below else folder
        if (known := identity(path)) in visited:
            continue
        visited.add(known)
        files: list[os.DirEntry[str]] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        (links if entry.is_symlink() else subfolders).append(os.path.join(below, entry.name))
                    else:
                        files.append(entry)
        except OSError as error:
            refuse(path, InputError(f"{path}: cannot be read: {reason(error)}"))
            continue
        yield below, files


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Whether something in a folder is a file, or cannot be read, which is said when it should be."""
    try:
        return entry.is_file()
    except OSError:
        return True


def _say_passed_over(folder: str, passed_over: Counter[str]) -> None:
    count = passed_over.total()
    if count:
        kinds = [f"{number:,} {kind}" for kind, number in passed_over.most_common(_LISTED_KINDS) if number]
        rest = count - sum(number for _, number in passed_over.most_common(_LISTED_KINDS))
        listed = ", ".join([*kinds, f"{rest:,} of other kinds"] if rest else kinds)
        logger.info("%s: %s file%s passed over: %s", folder, f"{count:,}", "s" * (count > 1), listed)


def _match(text: str, output: str | None) -> dict[str, Found]:
    """Returns the files that match a pattern, without the output folder below it and results of earlier runs.

    Brackets are taken literally in folders that exist, and everywhere if nothing matches otherwise.
    """
    parts = Path(text).parts
    base = Path()
    for part in parts[:-1]:
        if glob.has_magic(part) and not os.path.isdir(base / part):
            break
        base /= part
    pattern = parts[len(base.parts) :]
    matches = set(_expand(str(base), pattern))
    if not matches:
        matches = set(_expand(str(base), [part.replace("[", "[[]") for part in pattern]))
    files = [
        file for file in sorted(map(Path, matches)) if ending_of(file) in INPUT_ENDINGS and os.path.isfile(base / file)
    ]
    written = cache(_results_in)
    real = cache(os.path.realpath)
    inside = None if output is None else os.path.join(real(output), "")
    if inside is not None and inside == os.path.join(real(str(base)), ""):
        inside = None
    found: dict[str, Found] = {}
    for file in files:
        folder = str(base / file.parent)
        if inside is not None and os.path.join(real(folder), "").startswith(inside):
            continue
        if origin_of(file.stem) is None or file.name not in written(folder):
            below = str(file.parent)
            found[str(base / file)] = Found("" if below == "." else below)
    if not found:
        try:
            os.scandir(base).close()
        except PermissionError as error:  # which glob passes over
            raise InputError(f"{base}: cannot be read: {reason(error)}") from error
        hint = "only what an earlier run wrote" if files else ", ".join(EXTENSIONS)
        raise InputError(f"{text}: matches no images ({hint})")
    return found


def _expand(base: str, pattern: Sequence[str]) -> Iterator[str]:
    """Yields what matches the parts of a pattern below a folder; `glob.glob` follows circles of links in `**`."""
    if "**" not in pattern:
        yield from glob.glob(os.path.join(*pattern), root_dir=base)
        return
    start = pattern.index("**")
    rest = pattern[start + 1 :] or ("*",)
    for folder in glob.glob(os.path.join(*pattern[:start]), root_dir=base) if start else ("",):
        for below, _ in _walk(os.path.join(base, folder), (), lambda path, error: None):
            for match in _expand(os.path.join(base, folder, below), rest):
                yield os.path.join(folder, below, match)


def _results_in(folder: str) -> set[str]:
    """Returns the names of results of earlier runs in a folder."""
    return own_results(name for name in os.listdir(folder) if ending_of(name) in INPUT_ENDINGS)


def identity(path: str) -> tuple[int, int] | None:
    """Returns what is the same for all paths of a file or folder; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
