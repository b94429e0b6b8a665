"""A thousand damaged files: each is read or named once, and nothing crashes, hangs or fills the memory."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import MUTATIONS, claim_size, encode
from PIL import Image

from purinet_jax.data import check_pairs, evaluation_batches, open_pairs
from purinet_jax.data.images import PIXEL_LIMIT
from purinet_jax.data.masks import understand
from purinet_jax.data.synthetic import draw_example
from purinet_jax.errors import InputError

COUNT = 1000


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of which every second has a damaged image, the others a damaged mask."""
    root = tmp_path_factory.mktemp("damaged")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(COUNT):
        rng = np.random.default_rng(index)
        image, mask = draw_example(rng, (24, 40))
        files = [encode(image, "JPEG"), encode(mask * np.uint8(255), "PNG")]
        files[index % 2] = MUTATIONS[index // 2 % len(MUTATIONS)](files[index % 2], rng)
        (root / "images" / f"{index:04d}.jpg").write_bytes(files[0])
        (root / "masks" / f"{index:04d}.png").write_bytes(files[1])
    return root


PROGRAM = """
import json, resource, sys
from purinet_jax.data import check_pairs, open_pairs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bad = check_pairs(open_pairs(sys.argv[1]), workers=2, progress=False)
print(json.dumps({"bad": bad, "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""


@pytest.mark.slow
def test_each_damaged_file_is_read_or_named_once(damaged: Path) -> None:
    pairs = open_pairs(damaged)
    bad = check_pairs(pairs, progress=False)
    named = dict(bad)
    assert len(named) == len(bad)
    assert COUNT // 3 < len(named) < COUNT
    for index, reason in bad:
        assert "\n" not in reason
        assert (pairs.image_path(index) in reason) != (reason.startswith(pairs.mask_path(index)))
    # What passed the check is read by the pipeline; what did not is refused by it in the same way.
    good = pairs.subset(sorted(set(range(COUNT)) - named.keys()))
    read = 0
    with evaluation_batches(good, batch_size=50, size=16) as batches:
        for batch in batches:
            read += int(batch["valid"].sum())
    assert read == len(good)
    refused = 0
    for index in named:
        with pytest.raises(InputError):
            pairs[index]
        refused += 1
    assert refused == len(named)


def test_bombs_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = draw_example(np.random.default_rng(0), (24, 40))
    files = {"jpg": encode(image, "JPEG"), "png": encode(image, "PNG")}
    for ending, data in files.items():
        for width in (65535, 30000, PIXEL_LIMIT // 6000 + 1):
            height = max(6000, min(65535, PIXEL_LIMIT // width + 1))
            claimed = claim_size(data, height, width)
            (tmp_path / "images" / f"{ending}{width}.{ending}").write_bytes(claimed)
            (tmp_path / "masks" / f"{ending}{width}.png").write_bytes(encode(mask, "PNG"))
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(done.stdout)
    assert len(result["bad"]) == 6
    assert all(f"has more than {PIXEL_LIMIT:,} pixels" in reason for _, reason in result["bad"])
    assert result["grown"] < 100_000  # KiB; the smallest would take half a GiB


LABEL_FILES = 1000


def label_file(rng: np.random.Generator) -> bytes:
    """A mask of two to six values, in any mode that a PNG has."""
    top = int(rng.choice([4, 22, 150, 256]))
    values = rng.choice(top, min(int(rng.integers(2, 7)), top), replace=False)
    if rng.random() < 0.3:
        values[0] = 255
    if rng.random() < 0.7:
        values[-1] = 0
    labels = np.kron(values[rng.integers(0, len(values), (6, 8))], np.ones((4, 4))).astype(np.uint8)
    colours = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(colours.tobytes())
    images = (
        Image.fromarray(labels),
        palette,
        Image.fromarray(np.repeat(labels[..., None], 3, axis=2)),
        Image.fromarray((colours * (np.arange(256) > 0)[:, None]).astype(np.uint8)[labels]),
        Image.fromarray(np.dstack([np.full_like(labels, 255), labels])),
        Image.fromarray(np.dstack([np.repeat(labels[..., None], 3, axis=2), labels])),
        Image.fromarray(labels.astype(np.uint16) * np.uint16(rng.choice([1, 16, 100, 257]))),
        Image.fromarray(labels > values.mean()),
    )
    buffer = io.BytesIO()
    images[int(rng.integers(len(images)))].save(buffer, "PNG")
    return buffer.getvalue()


def test_label_files_of_any_coding_are_understood_or_refused() -> None:
    refused = []
    for seed in range(LABEL_FILES):
        data = label_file(np.random.default_rng(seed))
        try:
            mask = understand("set", ["a.png"], lambda member, data=data: data).read(data) >= 128
        except InputError as error:
            refused.append(str(error))
            continue
        assert 0 < mask.mean() < 1, seed
    assert LABEL_FILES // 10 < len(refused) < LABEL_FILES // 2
    assert all("--object-labels" in message for message in refused)
