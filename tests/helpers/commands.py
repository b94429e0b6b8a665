"""The command line, called in this process, or in one that can be interrupted."""

import sys

import pytest

from purinet_jax.commands.main import main

# A shell makes its background processes ignore Ctrl-C, which the tests may be.
INTERRUPTIBLE = (
    sys.executable,
    "-c",
    "import signal, sys; from purinet_jax.commands.main import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())",
)


def assert_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *parts: str) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("purinet: ")
    for part in parts:
        assert part in lines[-1]
