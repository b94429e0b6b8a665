"""`purinet benchmark`: a small one, in its own processes."""

from purinet_jax.benchmark import benchmark


def test_benchmark_measures_time_memory_and_machine() -> None:
    result = benchmark(backbone="vgg16", channels=4, size=32, batch_size=1, dtype="float32", repeats=2)
    for name in ("level1_inference", "all_maps_inference", "train_step"):
        assert 0 < result[name]["minimum_ms"] <= result[name]["median_ms"]
        assert result[name]["peak_memory_mib"] > 50
    assert result["train_step"]["median_ms"] > result["level1_inference"]["median_ms"]
    assert result["settings"]["backbone"] == "vgg16"
    assert result["machine"]["cores"] >= 1
    assert (result["yardstick"] is None) == ("yardsticks" not in result["train_step"])
