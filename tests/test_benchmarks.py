"""`purinet benchmark` and the scripts in `benchmarks/`, in their smallest settings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import assert_refused
from helpers.project_scripts import ROOT, import_script
from helpers.tiny import TinyBackbone

from purinet_jax.benchmarks import accelerator, machine, memory, network
from purinet_jax.benchmarks.prediction import benchmark_predict
from purinet_jax.commands.main import main
from purinet_jax.data import write_synthetic
from purinet_jax.network.backbones import BACKBONES
from purinet_jax.network.config import ModelConfig

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A network that compiles in seconds, measured in this process, which keeps its settings of the allocator."""
    monkeypatch.setitem(BACKBONES, "tiny", TinyBackbone)
    for module in (machine, memory, network):
        monkeypatch.setattr(module, "in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(network, "keep_freed_memory", lambda: None)
    return ModelConfig("tiny", 4)


def run_script(name: str, *arguments: str) -> Any:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def test_a_measurement_runs_in_a_process_of_its_own() -> None:
    assert machine.in_process(os.getppid) == os.getpid()
    assert machine.in_process(divmod, 17, 5) == (3, 2)


@pytest.mark.slow
def test_the_network_benchmark_measures_time_memory_and_machine(tiny: ModelConfig) -> None:
    settings = {"size": 32, "batch_size": 1, "dtype": "float32", "repeats": 2}
    result = network.benchmark_network(tiny, **settings)  # type: ignore[arg-type]
    for name in network.MEASUREMENTS:
        assert 0 < result[name]["minimum_ms"] <= result[name]["median_ms"]
        assert result[name]["peak_memory_mib"] > 50
        assert 0 < result[name]["of_matrix_product"] < 1
        assert ("yardsticks" in result[name]) == (result["yardstick"] is not None)
    level1, all_maps, step = (result[name]["gflop"] for name in network.MEASUREMENTS)
    assert 0 < level1 < all_maps
    assert step == pytest.approx(3 * all_maps, abs=1e-3)
    assert result["settings"] == {"model": tiny.to_dict(), **settings}
    assert 1 <= result["machine"]["threads"] <= result["machine"]["cores"]
    assert result["machine"]["device"] == "cpu"


@pytest.mark.slow
def test_memory_of_a_step_is_what_the_compiler_says(tiny: ModelConfig) -> None:
    config = ModelConfig("tiny", 8, attention=())
    plain, remat = memory.benchmark_memory(config, size=64, batches=(4,), dtypes=("float32",))["rows"]
    assert (plain["remat"], remat["remat"]) == (False, True)
    assert plain["arguments_mib"] == remat["arguments_mib"] > 4 * 64 * 64 * 4 / 2**20  # at least image and mask
    assert plain["outputs_not_aliased_mib"] < plain["outputs_mib"] < plain["arguments_mib"]
    assert 0 < remat["temporaries_mib"] <= plain["temporaries_mib"]
    assert 0 < remat["kept_mib"] < 0.6 * plain["kept_mib"]


@pytest.mark.slow
def test_an_accelerator_is_measured_until_the_time_is_up(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "PRECISIONS", {"bfloat16": ("bfloat16", "default")})
    result = accelerator.benchmark_accelerator(tiny, size=32, batches=(2,), repeats=2)
    assert [row["kind"] for row in result["rows"]] == ["level1_inference", "train_step"]
    for row in result["rows"]:
        assert (row["batch_size"], row["precision"]) == (2, "bfloat16")
        assert row["images_per_second"] == pytest.approx(2000 / row["ms"], rel=0.05)
        assert row["share"] >= 0
        assert row["program_mib"] >= 0
    assert result["ceilings_tflops"]["bfloat16"] > 0
    late = accelerator.benchmark_accelerator(tiny, size=32, batches=(2,), repeats=2, limit=-1)
    assert [row["not_measured"] for row in late["rows"]] == ["the time was up"] * 2


@pytest.mark.slow
def test_predicting_is_measured_from_the_command_line_on() -> None:
    result = benchmark_predict(size=64, images=3, large_side=500, repeats=1)
    assert 0 < result["network"]["minimum_ms"] <= result["network"]["median_ms"]
    first, folder = result["first_image_s"], result["folder"]
    # Entire processes take longer than their forward passes.
    assert 0 < result["network"]["median_ms"] < 1000 * min(first["with_cache"], first["without_cache"])
    assert folder["images_per_second"] == pytest.approx(3 / folder["seconds"], rel=0.01, abs=0.005)
    assert folder["seconds"] * 1000 > 3 * result["network"]["minimum_ms"]
    assert folder["peak_memory_mib"] > 50
    assert result["large_cutout"]["peak_memory_mib"] > 50


def test_the_command_chooses_the_benchmark_and_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(config: ModelConfig, **settings: Any) -> dict[str, Any]:
        return {"backbone": config.backbone, "channels": config.channels, **settings}

    monkeypatch.setattr(machine, "in_process", lambda function, *arguments: function(*arguments))
    for module, name in ((network, "network"), (memory, "memory"), (accelerator, "accelerator")):
        monkeypatch.setattr(module, f"benchmark_{name}", pretend)

    def result(*arguments: str) -> dict[str, Any]:
        assert main(["benchmark", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    default = result()
    assert (default["backbone"], default["channels"]) == ("efficientnet_lite2", 48)
    assert (default["size"], default["batch_size"], default["dtype"], default["repeats"]) == (320, 2, "float32", 7)
    for backbone in BACKBONES:
        assert result("--backbone", backbone)["backbone"] == backbone
    assert result("--memory", "8", "32")["batches"] == [8, 32]
    assert result("--accelerator", "--backbone", "resnet50", "--channels", "8") == {
        "backbone": "resnet50",
        "channels": 8,
        "size": 320,
        "batches": [1, 8, 32, 64],
        "repeats": 7,
    }
    assert result("--accelerator", "4")["batches"] == [4]
    assert_refused(capsys, ["benchmark", "--backbone", "nothing"], "'nothing' is none of efficientnet_lite0, ")
    assert_refused(capsys, ["benchmark", "--channels", "8"], "--channels: goes with --backbone")
    assert_refused(capsys, ["benchmark", "--predict", "--backbone", "resnet50"], "--backbone: not with --predict")
    assert_refused(capsys, ["benchmark", "--memory", "4", "--repeats", "3"], "--repeats: not with --memory")
    assert_refused(capsys, ["benchmark", "--images", "3"], "--images: goes with --predict")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_run(path: Path) -> None:
    assert f"\n    python benchmarks/{path.name}" in path.read_text()


def test_metrics_are_measured_against_pysodmetrics() -> None:
    result = run_script("metrics", "--images", "1", "--repeats", "1")
    ours, theirs = result["ours"], result["pysodmetrics"]
    assert set(ours["parts_ms"]) > {"weighted_f", "s_measure"}
    assert result["to_pysodmetrics"] == pytest.approx(ours["median_ms"] / theirs["median_ms"], rel=0.05)


@pytest.mark.slow
def test_the_pipeline_is_measured_against_bare_decoding(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path, 8, (24, 40))
    result = run_script("data", str(data), "--size", "32", "--images", "16", "--repeats", "1")
    for workers in ("1", "2"):
        measured = result["images_per_second"][workers]
        assert measured["pipeline"] > 0
        assert measured["ratio"] == pytest.approx(measured["pipeline"] / measured["pillow"], rel=0.05, abs=0.01)
    assert set(result["first_batch_s"]) == {"0", "1", "2"}


@pytest.mark.slow
def test_serving_is_measured_with_hostile_clients() -> None:
    result = run_script("serve", "--size", "32", "--requests", "32", "--clients", "8", "--hostile", "0.4")
    outcomes = result["outcomes"]
    assert set(outcomes) > {"image"}
    assert {verdict for counts in outcomes.values() for verdict in counts} == {"right"}
    assert sum(sum(counts.values()) for counts in outcomes.values()) == result["answered"] == 32
    assert 0 < result["image_ms"]["median"] <= result["image_ms"]["p99"] <= result["image_ms"]["largest"]
    assert result["server"]["healthy"]
    assert result["server"]["exit_code"] == 0
    assert 50 < result["server"]["memory_at_the_end_mib"] <= result["server"]["peak_memory_mib"]


def test_matting_is_measured_against_guided_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = import_script("matting", "benchmarks")
    for module in (machine, script):
        monkeypatch.setattr(module, "in_process", lambda function, *arguments: function(*arguments))
    photographs = write_synthetic(tmp_path, 2, (60, 80)) / "DUTS-TR-Image"
    script.main(["--images", "1", "--width", "160", "--photographs", str(photographs), "--megapixels", "0.1"])
    result = json.loads(capsys.readouterr().out)
    for kind in script.KINDS:
        assert set(result[kind]) == {"guided", "matting"}
        assert all(error >= 0 for errors in result[kind].values() for error in errors.values())
    assert [(row["method"], row["megapixels"]) for row in result["cost"]] == [("guided", 0.1), ("matting", 0.1)]
    with pytest.raises(SystemExit, match="there are no photographs in it"):
        script.main(["--images", "1", "--photographs", str(tmp_path)])


def test_smoothing_is_measured_on_made_clips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "in_process", lambda function, *arguments: function(*arguments))
    script = import_script("smoothing", "benchmarks")
    script.main(["--frames", "4", "--size", "64"])
    result = json.loads(capsys.readouterr().out)
    for name in script.SPEEDS:
        assert 0 < result[name]["smooth"]["flicker"] < result[name]["plain"]["flicker"]
        assert result[name]["milliseconds"] > 0


def test_the_fit_over_batches_and_sizes_finds_the_terms_of_the_times() -> None:
    rows = [
        {"batch_size": batch, "size": size, "s": 9.0, "cpu_s": 0.5 + 2e-6 * batch * size**2}
        for size in (160, 320)
        for batch in (1, 2, 4)
    ]
    result = import_script("scaling", "benchmarks").fit(rows, "cpu_s")
    assert result["fit"] == {"of": "cpu_s", "constant_s": pytest.approx(0.5), "s_per_megapixel": pytest.approx(2.0)}
    assert [row["to_fit"] for row in result["rows"]] == [1.0] * 6


def test_measures_of_superpixels() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 12:] = 1
    image = np.repeat(100 * mask[:, :, None] + np.uint8(50), 3, axis=2)
    columns = np.arange(30)
    script = import_script("superpixels", "benchmarks")

    def measure(labels: np.ndarray) -> dict[str, float]:
        return script.measures(image, mask, np.broadcast_to(labels, mask.shape).astype(np.int32))

    assert measure((columns >= 12) + 0) == {
        "explained_variation": pytest.approx(1),
        "boundary_recall": 1,
        "boundary_density": pytest.approx(1 / 30),
        "achievable_accuracy": 1,
        "regions": 2,
        "pieces": 2,
    }
    assert measure((columns >= 14) + 0)["boundary_recall"] == 1  # two pixels off
    assert measure((columns >= 15) + 0)["boundary_recall"] == 0  # three
    # One region has five columns of the other side: a sixth of the pixels are wrong.
    off = measure((columns >= 17) + 0)
    assert off["achievable_accuracy"] == pytest.approx(1 - 5 / 30)
    assert off["explained_variation"] == pytest.approx(1 - (17 * (12 / 17) * (5 / 17)) / (30 * 0.4 * 0.6))
    one = measure(np.zeros(30))
    assert (one["explained_variation"], one["boundary_recall"], one["regions"]) == (0, 0, 1)
    # A label with two pieces, and one unused label.
    apart = measure(np.where(columns < 10, 0, np.where(columns < 20, 2, 0)))
    assert (apart["regions"], apart["pieces"]) == (2, 3)


def test_superpixels_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, taken = import_script("superpixels", "benchmarks"), []

    def pretend(config: ModelConfig, **settings: Any) -> Any:
        return lambda: taken.append((config.backbone, settings["size"], settings["objective"]))

    monkeypatch.setattr(script, "repeatable_train_step", pretend)
    monkeypatch.setattr(machine, "in_process", lambda function, *arguments: function(*arguments))
    data = write_synthetic(tmp_path, 3, (40, 60))
    script.main([str(data), "--images", "2", "--size", "48", "--repeats", "3", "--backbone", "vgg16"])
    result = json.loads(capsys.readouterr().out)
    quality = result["superpixels"]
    assert list(quality) == ["scikit_image", "slic", "grid"]
    for values in quality.values():
        assert values["regions"] <= values["pieces"]
        assert 0.9 < values["achievable_accuracy"] <= 1
        assert values["milliseconds"] >= 0
    assert quality["slic"]["explained_variation"] > quality["grid"]["explained_variation"]
    # The first two rounds are not counted.
    assert taken[8:] == 3 * [("vgg16", 48, objective) for objective in script.OBJECTIVES.values()]
    assert list(result["train_step"]) == ["files", "slic", "grid", "none"]
    assert result["train_step"]["files"]["to_files"] == 1
    with pytest.raises(SystemExit, match="none: no such file or folder"):
        script.main([str(tmp_path / "none")])
