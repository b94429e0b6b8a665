"""The command line, called in this process."""

import pytest

from purinet_jax.commands.main import main


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *parts: str) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("purinet: ")
    for part in parts:
        assert part in lines[-1]
