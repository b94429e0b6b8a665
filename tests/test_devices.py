"""Commands log the device that they run on, and refuse to run on another one than --require names."""

import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from purinet_jax.commands.main import main
from purinet_jax.data import write_synthetic
from purinet_jax.devices import describe_cpu, describe_devices, usable_cores
from purinet_jax.errors import InputError


def pretend(monkeypatch: pytest.MonkeyPatch, platform: str, *kinds: str) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind) for kind in kinds])


def test_devices_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cores()
    assert describe_devices() == describe_cpu() == f"CPU, {cores} core{'s' if cores > 1 else ''}"
    monkeypatch.setattr("purinet_jax.devices.usable_cores", lambda: 1)
    assert describe_cpu() == "CPU, 1 core"
    pretend(monkeypatch, "gpu", "NVIDIA A", "NVIDIA A")
    assert describe_devices() == describe_devices("gpu") == "2 × NVIDIA A"
    pretend(monkeypatch, "gpu", "NVIDIA A", "NVIDIA B", "NVIDIA A")
    assert describe_devices("gpu") == "2 × NVIDIA A, 1 × NVIDIA B"


@pytest.mark.parametrize(("required", "extra"), [("gpu", "cuda"), ("tpu", "tpu")])
def test_what_is_required_and_missing_is_said_with_what_to_install(required: str, extra: str) -> None:
    with pytest.raises(InputError) as raised:
        describe_devices(required)
    message = f"--require {required}: JAX found only {describe_cpu()}; for a {required.upper()}: pip install "
    assert str(raised.value) == f"{message}'purinet_jax[{extra}]'"


def test_another_accelerator_is_not_the_required_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tpu", "TPU v4")
    with pytest.raises(InputError, match="JAX found only 1 × TPU v4; for a GPU"):
        describe_devices("gpu")


def test_a_backend_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("Unable to initialize backend 'cuda': no such thing\nand more")

    monkeypatch.setattr(jax, "default_backend", fail)
    with pytest.raises(InputError, match=r"^JAX cannot be started: Unable .* no such thing; for a GPU: pip install"):
        describe_devices("gpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("data"), 2, size=(40, 60), seed=0)


def test_every_command_refuses_to_run_on_anything_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(data / "DUTS-TR-Image")
    for command in (
        ["train", "--config", "tiny", "--data", str(data), "-o", str(tmp_path / "run")],
        ["predict", images, "-o", str(tmp_path / "maps")],
        ["evaluate", "--data", str(data)],
        ["evaluate", "--maps", str(data / "DUTS-TR-Mask"), "--data", str(data)],
        ["benchmark"],
    ):
        assert main([*command, "--require", "gpu"]) == 2, command
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("purinet: --require gpu: JAX found only CPU, "), command
        assert "pip install 'purinet_jax[cuda]'" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_first_line_says_the_device_unless_quiet(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "purinet_jax")
    predict = ["predict", str(data / "DUTS-TR-Image"), "--size", "32", "--overwrite", "-o", str(tmp_path / "maps")]
    assert main(predict) == 0
    assert caplog.messages[0] == f"running on {describe_cpu()}"
    caplog.clear()
    assert main([*predict, "--quiet"]) == 0
    assert caplog.messages == []
    maps = ["evaluate", "--maps", str(data / "DUTS-TR-Mask"), "--data", str(data), "--workers", "0"]
    assert main(maps) == 0
    assert caplog.messages == [f"running on {describe_cpu()}"]
