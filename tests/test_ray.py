"""Prediction on Ray: batches and collections of images without Ray, and a cluster of two nodes that loses one."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.networks import Brightness
from PIL import Image

from purinet_jax.commands.main import main
from purinet_jax.errors import InputError
from purinet_jax.prediction import predictor
from purinet_jax.prediction.ray import BatchPredictor, predict_collection, ray_cluster
from purinet_jax.prediction.ray_files import Output, find_images
from purinet_jax.prediction.rendering import Style

SIZE = 32
RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)

# Ray Data sets settings of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning:ray.data.context")


def encoded(image: np.ndarray = RGB, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if data is None else data)
    return path


def described(data: bytes) -> tuple[Any, ...]:
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.mode, image.size


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "load", lambda checkpoint, size: Brightness(attention=False))


# Batches -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bright")
def test_a_batch_of_bytes_gives_maps_and_errors() -> None:
    batch = pa.table({"name": ["a", "b", "c"], "label": [1, 2, 3], "bytes": [encoded(), b"no image", None]})
    results = BatchPredictor(batch_size=2)(batch)
    assert results.column_names == ["name", "label", "map", "error"]
    assert results["label"].to_pylist() == [1, 2, 3]
    assert results["error"].to_pylist() == [None, "b: not an image, or a damaged one", "c: the row is empty"]
    assert described(results["map"][0].as_py()) == ("PNG", "L", (40, 24))
    assert results["map"].null_count == 2
    unnamed = BatchPredictor()(batch.select(["bytes"]))
    assert unnamed["error"][1].as_py() == "image: not an image, or a damaged one"


@pytest.mark.usefixtures("bright")
def test_a_batch_of_paths_and_uris_is_read(tmp_path: Path) -> None:
    image = write(tmp_path / "a b.png")
    paths = [str(image), f"file://{tmp_path}/a%20b.png", f"{tmp_path}/none.png"]
    results = BatchPredictor(style=Style("cutout", ending=".webp"))(pa.table({"path": paths}))
    assert results["error"].to_pylist() == [
        None,
        None,
        f"{tmp_path}/none.png: cannot be read: No such file or directory",
    ]
    assert described(results["map"][0].as_py()) == ("WEBP", "RGBA", (40, 24))
    assert results["map"][0] == results["map"][1]


@pytest.mark.usefixtures("bright")
def test_attention_needs_a_network_with_attention() -> None:
    with pytest.raises(InputError, match="attention: this network has none"):
        BatchPredictor(style=Style("attention"))


# Collections ----------------------------------------------------------------------------------------------------


def test_folders_are_searched(tmp_path: Path) -> None:
    names = (
        "in/a.JPG",
        "in/b/c.png",
        "in/.hidden.png",
        "in/.d/e.png",
        "in/notes.txt",
        "in/out/a.png",
        "in/b/c_map.png",
    )
    for name in names:
        write(tmp_path / name)
    for text in (str(tmp_path / "in"), f"file://{tmp_path}/in"):
        images = find_images([text], str(tmp_path / "in" / "out"))
        assert images.names == ["a.JPG", "b/c.png"]
        assert images.paths == [f"{tmp_path}/in/a.JPG", f"{tmp_path}/in/b/c.png"]
    assert find_images([str(tmp_path / "in/b/c.png")], "out").names == ["c.png"]


def test_parquet_files_hold_bytes_or_paths(tmp_path: Path) -> None:
    for index in range(2):
        table = pa.table({"name": [f"{index}/a", f"{index}/b"], "bytes": [b"1", b"2"], "more": [1, 2]})
        pq.write_table(table, tmp_path / f"{index}.parquet")
    images = find_images([str(tmp_path)], str(tmp_path / "out.parquet"))
    assert images.names == ["0/a", "0/b", "1/a", "1/b"]
    assert images.paths == [f"{tmp_path}/{index}.parquet" for index in (0, 0, 1, 1)]
    assert images.groups == [0, 0, 0, 0]
    pq.write_table(pa.table({"path": ["s3://x/a.jpg", "/b.jpg"]}), tmp_path / "paths.parquet")
    images = find_images([str(tmp_path / "paths.parquet")], "out")
    assert images.names == images.paths == ["s3://x/a.jpg", "/b.jpg"]
    assert images.filesystem is None


def test_bad_inputs_are_refused(tmp_path: Path) -> None:
    def refused(match: str, *inputs: str, output: str = "out") -> None:
        with pytest.raises(InputError, match=match):
            find_images([str(tmp_path / name) if "://" not in name else name for name in inputs], output)

    write(tmp_path / "photos/a.jpg")
    write(tmp_path / "more/a.jpg")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "broken.parquet", b"no Parquet")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"name": ["a", None], "bytes": [b"", b""]}), tmp_path / "unnamed.parquet")
    refused("none: no such file or folder", "none")
    refused("empty: holds neither images .* nor Parquet files", "empty")
    refused(r"a\.jpg: is the name of 2 images", "photos", "more")
    refused("photos: is the output too", "photos", output=str(tmp_path / "photos"))
    refused(r"broken\.parquet: cannot be read", "broken.parquet")
    refused(r"other\.parquet: needs the columns bytes and name, or path; it has image", "other.parquet")
    refused(r"unnamed\.parquet: has rows without name", "unnamed.parquet")
    refused(r"broken\.parquet: is Parquet, other inputs are images", "photos", "broken.parquet")
    refused("nothing://x", "nothing://x/y")


def test_outputs_are_written_once_and_found_again(tmp_path: Path) -> None:
    results = pa.table(
        {
            "name": ["in/a.jpg", "b.jpg", "b.png", "bad.jpg"],
            "map": pa.array([b"1", b"2", b"3", None], pa.large_binary()),
            "error": [None, None, None, "bad.jpg: damaged"],
        }
    )
    names = [*results["name"].to_pylist(), "later.jpg"]
    tree, table = Output(str(tmp_path / "tree"), names, ".png"), Output(str(tmp_path / "t.parquet"), names, ".png")
    for output in (tree, table):
        assert output.done(names) == {}
        for _ in range(2):  # by a worker that seemed lost
            written = output.write(results)
            assert written["name"].to_pylist() == names[:4]
            assert written["error"].to_pylist() == [None, None, None, "bad.jpg: damaged"]
    files = {file.relative_to(tmp_path / "tree").as_posix(): file for file in (tmp_path / "tree").rglob("*.*")}
    assert {name: file.read_bytes() for name, file in files.items()} == {
        "in/a.png": b"1",
        "b.jpg.png": b"2",
        "b.png.png": b"3",
    }
    assert tree.done(names) == {"in/a.jpg": None, "b.jpg": None, "b.png": None}
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == results.to_pylist()
    assert table.done(names) == {**dict.fromkeys(names[:3]), "bad.jpg": "bad.jpg: damaged"}
    assert table.path("b.jpg") == f"{tmp_path}/t.parquet"
    assert tree.path("in/a.jpg") == f"{tmp_path}/tree/in/a.png"


def test_outputs_that_cannot_be_written_are_errors_of_their_images(tmp_path: Path) -> None:
    names = ["in/a.jpg", "b.jpg"]
    results = pa.table({"name": names, "map": [b"1", b"2"], "error": pa.nulls(2, pa.string())})
    write(tmp_path / "tree" / "in")
    errors = Output(str(tmp_path / "tree"), names, ".png").write(results)["error"].to_pylist()
    assert errors[0].startswith(f"{tmp_path}/tree/in/a.png: cannot be written")
    assert errors[1] is None
    with pytest.raises(InputError, match="in: is a file"):
        Output(str(tmp_path / "tree" / "in"), names, ".png")
    with pytest.raises(InputError, match=r"\.\./a\.jpg: leaves the output"):
        Output(str(tmp_path / "tree"), ["../a.jpg"], ".png")


def test_the_command_refuses_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    image = str(write(tmp_path / "in" / "a.png").parent)
    for arguments, message in (
        ([], "--ray: name a folder"),
        (["-o", str(tmp_path / "out"), "--overwrite"], "--overwrite: --ray skips outputs that exist"),
        (["-o", str(tmp_path / "out")], "--ray 127.0.0.1:1: no Ray cluster responds"),
    ):
        assert main(["predict", image, "--ray", "127.0.0.1:1", *arguments]) == 2
        assert message in capsys.readouterr().err
    write(tmp_path / "out" / "a.png")
    assert main(["predict", image, "--ray", "127.0.0.1:1", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "all outputs exist already, nothing to do\n"


# Clusters ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, each with one CPU, on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster()
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning"
)  # JAX warns of it; what Ray forks is another program at once
def test_each_image_has_its_map_or_its_error_once_though_a_node_is_lost(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(40):
        write(tmp_path / "photos" / f"{index % 3}" / f"{index:02}.png")
    write(tmp_path / "photos/2/05.png", b"no image")
    write(tmp_path / "photos/0/30.png", b"")
    path = str(tmp_path / "maps.parquet")
    images = find_images([str(tmp_path / "photos")], path)
    output = Output(path, images.names, ".png")
    errors: dict[str, str | None] = {}
    with ray_cluster(cluster.address) as description, caplog.at_level(logging.INFO, "purinet_jax"):
        assert description == "Ray, 2 nodes, 2 CPUs"
        for name, error in predict_collection(images, output, images.names, rows=2, checkpoint="lite", size=SIZE):
            assert name not in errors
            errors[name] = error
            if len(errors) == 4:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert "workers were lost" in caplog.text
    rows = pq.read_table(path).to_pylist()
    assert sorted(row["name"] for row in rows) == sorted(errors) == images.names
    assert {name: error for name, error in errors.items() if error is not None} == {
        "0/30.png": "0/30.png: the file is empty",
        "2/05.png": "2/05.png: not an image, or a damaged one",
    }
    for row in rows:
        assert row["error"] == errors[row["name"]]
        assert row["map"] is None if row["error"] else described(row["map"]) == ("PNG", "L", (40, 24))

    # The node that is left: bytes in Parquet to a tree, of which a part is there.
    table = pa.table({"name": ["in/a.png", "b.png", "c.png"], "bytes": [encoded(), b"no image", b"as it is"]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    write(tmp_path / "tree/c.png", b"as it was")
    arguments = ["predict", str(tmp_path / "in.parquet"), "--ray", cluster.address, "-o", str(tmp_path / "tree")]
    capsys.readouterr()
    assert main([*arguments, "--json", "--checkpoint", "lite", "--size", str(SIZE)]) == 2
    captured = capsys.readouterr()
    assert sorted(map(json.loads, captured.out.splitlines()), key=lambda line: line["input"]) == [
        {"input": "b.png", "error": "b.png: not an image, or a damaged one"},
        {"input": "in/a.png", "output": f"{tmp_path}/tree/in/a.png"},
    ]
    assert captured.err.splitlines()[-1] == "purinet: b.png: not an image, or a damaged one"
    assert described((tmp_path / "tree/in/a.png").read_bytes()) == ("PNG", "L", (40, 24))
    assert (tmp_path / "tree/c.png").read_bytes() == b"as it was"
