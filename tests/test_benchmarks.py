"""`purinet benchmark`: a small one."""

import json
import os
from pathlib import Path

import pytest
from helpers.tiny import TinyBackbone

from purinet_jax.benchmarks import memory, network, scaling
from purinet_jax.benchmarks.data import benchmark_data
from purinet_jax.benchmarks.machine import in_process
from purinet_jax.benchmarks.metrics import benchmark_metrics
from purinet_jax.benchmarks.predict import benchmark_predict
from purinet_jax.benchmarks.serve import benchmark_serve
from purinet_jax.data import write_synthetic
from purinet_jax.errors import InputError
from purinet_jax.network.model import BACKBONES


def test_a_measurement_has_a_process_of_its_own() -> None:
    assert in_process(os.getppid) == os.getpid()
    assert in_process(divmod, 17, 5) == (3, 2)


@pytest.mark.slow
def test_benchmark_measures_time_memory_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, which knows of a network that compiles in seconds and keeps its settings of the allocator.
    monkeypatch.setitem(BACKBONES, "tiny", TinyBackbone)
    monkeypatch.setattr(network, "in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(network, "keep_freed_memory", lambda: None)
    settings = {"backbone": "tiny", "channels": 4, "size": 32, "batch_size": 1, "dtype": "float32", "repeats": 2}
    result = network.benchmark_network(**settings)
    for name in ("level1_inference", "all_maps_inference", "train_step"):
        assert 0 < result[name]["minimum_ms"] <= result[name]["median_ms"]
        assert result[name]["peak_memory_mib"] > 50
    assert result["train_step"]["median_ms"] > result["level1_inference"]["median_ms"]
    assert 0 < result["level1_inference"]["gflop"] < result["all_maps_inference"]["gflop"]
    assert result["all_maps_inference"]["gflop"] < result["train_step"]["gflop"]
    assert 0 < result["train_step"]["of_matrix_product"] < 1
    assert result["settings"] == settings
    assert 1 <= result["machine"]["threads"] <= result["machine"]["cores"]
    assert (result["yardstick"] is None) == ("yardsticks" not in result["train_step"])


def test_results_are_compared_with_earlier_ones_of_the_same_settings(tmp_path: Path) -> None:
    settings = {"backbone": "resnet50", "size": 320, "repeats": 3}
    measured = {"median_ms": 200.0, "peak_memory_mib": 100}
    before = {"settings": {**settings, "repeats": 7}, **dict.fromkeys(network.MEASUREMENTS, measured)}
    (tmp_path / "before.json").write_text(json.dumps(before))
    assert network.earlier_result(tmp_path / "before.json", settings) == before
    after = {**before, "train_step": {"median_ms": 150.0, "peak_memory_mib": 50}}
    lines = [line.split() for line in network.compared(before, after).splitlines()]
    assert ["train_step", "200.0", "150.0", "0.750", "median_ms"] in lines
    assert ["train_step", "100", "50", "0.500", "peak_memory_mib"] in lines
    assert ["level1_inference", "200.0", "200.0", "1.000", "median_ms"] in lines
    with pytest.raises(InputError, match="measured with"):
        network.earlier_result(tmp_path / "before.json", {**settings, "size": 224})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json: not a result"):
        network.earlier_result(tmp_path / "other.json", settings)


@pytest.mark.slow
def test_the_pipeline_is_measured_beside_bare_decoding(tmp_path: Path) -> None:
    result = benchmark_data(write_synthetic(tmp_path, 8, (24, 40)), size=32, images=16, repeats=1)
    for workers in ("1", "2"):
        measured = result["images_per_second"][workers]
        assert measured["pipeline"] > 0
        assert measured["ratio"] == pytest.approx(measured["pipeline"] / measured["pillow"], rel=0.05, abs=0.01)
    assert set(result["first_batch_s"]) == {"0", "1", "2"}
    assert result["settings"]["images"] == 16


def test_metrics_are_measured_beside_pysodmetrics() -> None:
    result = benchmark_metrics(images=1, repeats=1)
    ours, theirs = result["ours"], result["pysodmetrics"]
    assert set(ours["parts_ms"]) > {"weighted_f", "s_measure"}
    assert result["to_pysodmetrics"] == pytest.approx(ours["median_ms"] / theirs["median_ms"], rel=0.05)


@pytest.mark.slow
def test_predicting_is_measured_from_the_command_line_on() -> None:
    result = benchmark_predict(size=64, images=3, large_side=500, repeats=1)
    assert 0 < result["network"]["minimum_ms"] <= result["network"]["median_ms"]
    first, folder = result["first_picture_s"], result["folder"]
    # Whole processes all, which hold more than their network's answers.
    assert 0 < result["network"]["median_ms"] < 1000 * min(first["with_cache"], first["without_cache"])
    assert folder["images_per_second"] == pytest.approx(3 / folder["seconds"], rel=0.01, abs=0.005)
    assert folder["seconds"] * 1000 > 3 * result["network"]["minimum_ms"]
    assert folder["peak_memory_mib"] > 50
    assert result["large_cutout"]["peak_memory_mib"] > 50


@pytest.mark.slow
def test_serving_is_measured_with_hostile_clients() -> None:
    result = benchmark_serve(size=32, requests=32, clients=8, hostile=0.4)
    outcomes = result["outcomes"]
    assert set(outcomes) > {"picture"}
    assert {verdict for counts in outcomes.values() for verdict in counts} == {"right"}
    assert sum(sum(counts.values()) for counts in outcomes.values()) == result["answered"] == 32
    assert 0 < result["picture_ms"]["median"] <= result["picture_ms"]["p99"] <= result["picture_ms"]["largest"]
    assert result["server"]["healthy"]
    assert result["server"]["exit_code"] == 0
    assert 50 < result["server"]["memory_at_the_end_mib"] <= result["server"]["peak_memory_mib"]


@pytest.mark.slow
def test_memory_of_a_step_is_what_the_compiler_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TinyBackbone)
    monkeypatch.setattr(memory, "in_process", lambda function, *arguments: function(*arguments))
    model = {"backbone": "tiny", "channels": 8, "attention": False}
    result = memory.benchmark_memory(model, size=64, batches=(4,), dtypes=("float32",))
    plain, remat = result["rows"]
    assert (plain["remat"], remat["remat"]) == (False, True)
    assert plain["arguments_mib"] == remat["arguments_mib"] > 4 * 64 * 64 * 8 / 2**20  # at least image, mask, labels
    assert plain["outputs_not_aliased_mib"] < plain["outputs_mib"] < plain["arguments_mib"]
    assert 0 < remat["temporaries_mib"] <= plain["temporaries_mib"]
    assert 0 < remat["kept_mib"] < 0.6 * plain["kept_mib"]


def test_the_fit_over_batches_and_sizes_finds_what_the_times_were_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(function: object, settings: dict[str, int]) -> dict[str, object]:
        seconds = 0.5 + 2e-6 * settings["batch_size"] * settings["size"] ** 2
        row = {name: settings[name] for name in ("batch_size", "size")}
        return {**row, "s": 9.0, "cpu_s": seconds, "platform": "cpu"}

    monkeypatch.setattr(scaling, "in_process", measure)
    result = scaling.benchmark_scaling(backbone="tiny", channels=4, dtype="float32", repeats=1)
    assert result["fit"] == {"of": "cpu_s", "constant_s": pytest.approx(0.5), "s_per_megapixel": pytest.approx(2.0)}
    assert len(result["rows"]) == 12
    assert {row["to_fit"] for row in result["rows"]} == {1.0}
