"""The command line: one line and exit code 2 for unusable input, and every step from weights to maps."""

import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import assert_refused
from PIL import Image

from purinet_jax.commands.main import build_parser, main
from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.config import ModelConfig
from purinet_jax.training.configurations import load_config
from purinet_jax.weights.files import save_variables

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig("mobilenet_v2", 4)
    model = config.build()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(np.float32), dict(shapes))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_variables(path, variables, config)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), 3, size=(40, 60), seed=0)


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "train" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize(
    "command", ["train", "finetune", "predict", "evaluate", "convert", "export", "serve", "benchmark"]
)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        build_parser().parse_args([command, "--help"])
    assert exit_.value.code == 0
    assert f"purinet {command}" in capsys.readouterr().out.split("examples:")[1]


def test_overrides_reach_the_configuration_and_unknown_keys_are_named() -> None:
    config = load_config(str(CONFIGS / "tiny.py"), ["--config.batch_size=16", "--config.optimizer.rate=0.5"])
    assert config.batch_size == 16
    assert config.optimizer.rate == 0.5
    with pytest.raises(InputError, match="batchsize"):
        load_config(str(CONFIGS / "tiny.py"), ["--config.batchsize=16"])
    with pytest.raises(InputError, match="many"):
        load_config(str(CONFIGS / "tiny.py"), ["--config.batch_size=many"])


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def get_config(:\n")
    with pytest.raises(InputError, match=r"broken\.py"):
        load_config(str(path), [])
    with pytest.raises(InputError, match="no such configuration file"):
        load_config(str(tmp_path / "none.py"), [])


def test_training_refuses_unusable_input(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--config", str(CONFIGS / "tiny.py"), "-o", str(tmp_path / "run"), "--quiet"]
    assert_refused(capsys, [*train, "--data", str(tmp_path / "nothing")], "nothing", "no such file or folder")
    assert_refused(capsys, [*train, "--data", str(data), "--config.nonsense=1"], "nonsense")
    (tmp_path / "empty").mkdir()
    assert_refused(capsys, [*train, "--data", str(tmp_path / "empty")], "empty")
    (tmp_path / "text.zip").write_text("not a zip")
    assert_refused(capsys, [*train, "--data", str(tmp_path / "text.zip")], "text.zip")
    assert_refused(capsys, [*train, "--data", str(data), "--init", str(tmp_path / "none.pth")], "none.pth")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as exit_:
        main([*train, "--data", str(data), "--nonsense"])
    assert exit_.value.code == 2


@pytest.mark.slow
def test_predict_evaluate_and_convert(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((data / "DUTS-TR-Image").iterdir())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[0].read_bytes()[:100])
    arguments = ["--checkpoint", str(weights), "--quiet"]
    output = tmp_path / "maps"
    assert main(["predict", str(images[0]), str(broken), str(images[1]), "-o", str(output), *arguments]) == 2
    assert "broken.jpg" in capsys.readouterr().err
    for image in images[:2]:
        with Image.open(output / f"{image.stem}.png") as found, Image.open(image) as original:
            assert found.size == original.size
            assert found.mode == "L"
    assert len(list(output.iterdir())) == 2

    copy = tmp_path / "copy.safetensors"
    assert main(["convert", str(weights), str(copy)]) == 0
    assert "mobilenet_v2" in capsys.readouterr().out
    assert main(["predict", str(images[2]), "-o", str(output), "--checkpoint", str(copy), "--quiet"]) == 0


@pytest.mark.slow
def test_evaluate_measures_networks_and_maps_and_prints_every_format(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    shutil.copytree(data / "DUTS-TR-Mask", maps)
    network = [f"ours={weights}", "--data", f"small={data}", "--size", "32", "--quiet"]
    images, plots = tmp_path / "images.csv", tmp_path / "plots"
    command = ["evaluate", "--maps", str(maps), "--checkpoint", *network, "--workers", "0"]
    assert main([*command, "--json", "--per-image", str(images), "--plots", str(plots)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["data_set"], row["protocol"], row["method"], row["images"], row["size"]) for row in rows] == [
        ("small", "purnet", "ours", 3, 32),
        ("small", "purnet", "maps", 3, None),
        ("small", "pysod", "ours", 3, 32),
        ("small", "pysod", "maps", 3, None),
    ]
    assert 0 < rows[0]["mae"] < 1
    assert rows[1]["mae"] == rows[3]["mae"] == 0
    assert len(images.read_text().splitlines()) == 1 + 6
    assert images.read_text().splitlines()[1].startswith("small,ours,synthetic_0000")
    assert sorted(file.name for file in plots.iterdir()) == [
        "small-curves.png",
        "small-maps-worst.png",
        "small-ours-worst.png",
    ]

    against_masks = ["evaluate", "--maps", str(maps), "--masks", str(data / "DUTS-TR-Mask"), "--quiet"]
    for form, begin in (
        ("--csv", "data_set,"),
        ("--markdown", "| data set "),
        ("--latex", "% needs"),
        ("", "data set"),
    ):
        assert main([*against_masks, "--protocol", "pysod", *filter(None, [form])]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(begin)
        assert "DUTS-TR" in printed
        assert "pysod" in printed
        assert "purnet" not in printed


def test_evaluate_refuses_unusable_input_before_measuring(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    shutil.copytree(data / "DUTS-TR-Mask", maps)
    command = ["evaluate", "--maps", str(maps), "--data", str(data), "--quiet", "--workers", "0"]
    (tmp_path / "a=b").mkdir()
    shutil.copy(next(maps.iterdir()), tmp_path / "a=b")
    assert_refused(
        capsys, [*command, "--maps", str(maps), str(tmp_path / "a=b")], "a=b: in DUTS-TR, no map for 2 masks"
    )
    assert_refused(capsys, [*command, "--per-image", str(tmp_path / "none" / "a.csv")], "none/a.csv")
    assert_refused(capsys, [*command, "--plots", str(weights)], weights.name)
    assert_refused(capsys, [*command, "--maps", str(maps), str(maps)], "maps: more than one method")
    assert_refused(capsys, ["evaluate", "--checkpoint", str(weights), "--masks", str(maps), "--quiet"], "masks alone")
    with Image.open(maps / "synthetic_00000.png") as image:
        image.resize((7, 9)).save(maps / "synthetic_00000.png")
    assert_refused(capsys, command, "synthetic_00000.png: the map has 7×9", "--protocol purnet")
    assert main([*command, "--protocol", "purnet"]) == 0
    (maps / "synthetic_00000.png").unlink()
    assert_refused(capsys, command, "no map for 1 mask: synthetic_00000 (--skip-unpaired")
    capsys.readouterr()
    assert main([*command, "--skip-unpaired"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[:4] == ["DUTS-TR", "purnet", "maps", "2"]
    assert printed.splitlines()[-1].startswith("DUTS-TR, maps: without 1 unpaired file: ")


@pytest.mark.slow
def test_predict_needs_nothing_but_an_image(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((data / "DUTS-TR-Image").iterdir())
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "photo.jpg"]) == 0
    assert capsys.readouterr() == ("photo_map.png\n", "")  # no bar for one image
    with Image.open("photo_map.png") as found, Image.open(photo) as original:
        assert found.size == original.size
    assert_refused(capsys, ["predict", "photo.jpg"], "photo_map.png: exists already; --overwrite replaces")
    assert main(["predict", "photo.jpg", "--skip-existing"]) == 0
    assert capsys.readouterr() == ("", "all outputs exist already, nothing to do\n")


@pytest.mark.slow
def test_predicted_images_and_messages(
    tmp_path: Path,
    weights: Path,
    data: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = data / "DUTS-TR-Image"
    first = min(images.iterdir())
    network = ["--checkpoint", str(weights), "--size", "64"]
    assert main(["predict", str(images), "-o", str(tmp_path / "out"), "--json", *network]) == 0
    output, bar = capsysbinary.readouterr()
    lines = [json.loads(line) for line in output.splitlines()]
    assert [Path(line["input"]).parent for line in lines] == [images] * 3
    assert all(Path(line["output"]).is_file() for line in lines)
    assert b"3/3" in bar
    assert main(["predict", str(images), "-o", str(tmp_path / "out"), "--overwrite", "--quiet", *network]) == 0
    assert capsysbinary.readouterr() == (b"", b"")
    assert main(["predict", str(images), "-o", str(tmp_path / "out"), "--overwrite", *network]) == 0
    assert capsysbinary.readouterr().out == f"3 files in {tmp_path / 'out'}\n".encode()

    for kind, mode in (("mask", "L"), ("cutout", "RGBA"), ("overlay", "RGB"), ("attention", "RGB")):
        png, webp = tmp_path / f"{kind}.png", tmp_path / f"{kind}.webp"
        command = ["predict", str(first), "--output-kind", kind, *network]
        assert main([*command, "-o", str(png)]) == 0
        assert main([*command, "-o", str(webp), "--threshold", "0.3"]) == 0
        with Image.open(png) as found:
            assert found.mode == mode
    capsysbinary.readouterr()

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(first.read_bytes())))
    cut = ["predict", "-", "--output-kind", "cutout", "--background", "white", "--format", "jpg", *network]
    assert main(cut) == 0
    with Image.open(io.BytesIO(capsysbinary.readouterr().out)) as found, Image.open(first) as original:
        assert (found.format, found.size) == ("JPEG", original.size)


def test_predict_refuses_before_it_writes(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((data / "DUTS-TR-Image").iterdir()))
    predict = ["predict", image, "--checkpoint", str(weights), "-o", str(tmp_path / "out")]
    assert_refused(capsys, [*predict[:-1], "-", "--json"], "--json: the standard output is the image's")
    assert_refused(capsys, [*predict, "--background", "white"], "background: is for cutout, not map")
    assert_refused(capsys, [*predict, "--output-kind", "cutout", "--format", "jpg"], "--background")
    for words, message in {
        "--min-area few": "min_area: 'few' is neither a percentage nor a number",
        "--min-area 100%": "min_area: must be at least 0 and below 1 (100%), not 1.0",
        "--min-area=-1%": "min_area: must be at least 0 and below 1 (100%), not -0.01",
        "--fill-holes --output-kind attention": "fill_holes: is not for attention",
        "--keep largest --output-kind attention": "keep_largest: is not for attention",
        "--matting --output-kind mask": "matting: is for cutout, not mask",
        "--smooth": "smooth: is for videos, and there is none",
        "--smooth --ray local": "smooth: is for videos, which --ray does not read",
        "--background blur:0% --output-kind cutout": "blur: its strength must be between 0 and 1 (100%), not 0.0",
        "--background no --output-kind cutout": "background: 'no' is neither an image's file nor a colour nor blur",
        "--background blur:x --output-kind cutout": "blur: 'x' is neither a percentage nor a number",
        "-o http://host/a.png": "http://host/a.png: is an address, and outputs are written to files only",
    }.items():
        assert_refused(capsys, [*predict, *words.split()], message)
    assert_refused(capsys, [*predict[:1], "http://host/a.jpg", *predict[2:]], "http://host/a.jpg: is an address")
    for wrong in (
        ["--threshold", "1.5"],
        ["--overwrite", "--skip-existing"],
        ["--output-kind", "gif"],
        ["--keep", "2"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*predict, *wrong])
        assert exit_.value.code == 2
    assert not (tmp_path / "out").exists()


def test_other_commands_refuse_unusable_input(
    tmp_path: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "maps")
    missing = str(tmp_path / "missing")
    assert_refused(capsys, ["predict", missing, "-o", output, "--checkpoint", str(weights)], "missing")
    image = str(next((data / "DUTS-TR-Image").iterdir()))
    assert_refused(capsys, ["predict", image, "-o", output, "--checkpoint", missing], "missing")
    assert_refused(capsys, ["predict", image, "-o", image, "--checkpoint", str(weights)], Path(image).name)
    assert_refused(capsys, ["evaluate", "--data", missing, "--checkpoint", str(weights)], "missing")
    assert_refused(capsys, ["convert", missing, str(tmp_path / "a.safetensors")], "missing")
    assert_refused(capsys, ["convert", str(weights), str(tmp_path / "a.pth")], "a.pth")
    assert not (tmp_path / "maps").exists()
