"""SIGINT and SIGTERM: a command ends with exit code 128 + signal at any moment, and leaves no incomplete file."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.project_scripts import import_script
from PIL import Image

from purinet_jax import interrupts

# A shell makes its background processes ignore Ctrl-C, which the tests may be.
BEGIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from purinet_jax import interrupts
from purinet_jax.commands import main
"""

WITHIN = {
    "an import": (
        "import pathlib\n"
        "folder = pathlib.Path(sys.argv[1]); (folder / 'compiled.py').write_text("
        '"try:\\n    import signal; signal.raise_signal(SIGNAL)\\nexcept BaseException:\\n    pass")\n'
        "sys.path.append(str(folder))\n"
        "def run(_):\n    import compiled; print('swallowed'); return 0\n"
    ),
    "the import of multiprocessing": (
        "import types\n"
        "def run(_):\n"
        "    sys.modules['multiprocessing'] = types.ModuleType('multiprocessing')\n"
        "    interrupts._importing = lambda frame: True\n"
        "    signal.raise_signal(SIGNAL); print('swallowed'); return 0\n"
    ),
    "a callback of the garbage collector": (
        "import gc\n"
        "def run(_):\n"
        "    gc.callbacks.append(lambda *_: signal.raise_signal(SIGNAL))\n"
        "    gc.collect(); print('swallowed'); return 0\n"
    ),
    "a library that turns it into an error of its own": (
        "def run(_):\n"
        "    try:\n        signal.raise_signal(SIGNAL)\n"
        "    except KeyboardInterrupt as error:\n        raise SystemError('failed') from error\n"
    ),
    "a library that drops it": (
        "def run(_):\n    try:\n        signal.raise_signal(SIGNAL)\n    except BaseException:\n        return 0\n"
    ),
    "a second signal, while files are closed": (
        "from purinet_jax.files import atomic_path\n"
        "def run(_):\n"
        "    with atomic_path(sys.argv[1] + '/output') as path:\n"
        "        path.write_text('half')\n"
        "        try:\n            signal.raise_signal(SIGNAL)\n"
        "        finally:\n            signal.raise_signal(SIGNAL)\n            print('swallowed')\n"
    ),
    "closing that does not end": (
        "import time\ninterrupts._SECONDS = 1\n"
        "def run(_):\n"
        "    try:\n        signal.raise_signal(SIGNAL)\n"
        "    finally:\n        time.sleep(60)\n"
    ),
}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
@pytest.mark.parametrize("where", WITHIN)
def test_a_signal_is_never_lost(where: str, kind: signal.Signals, tmp_path: Path) -> None:
    program = BEGIN + WITHIN[where].replace("SIGNAL", str(int(kind)))
    program += "main._run = run\nsys.exit(main.main())\n"
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + kind, "", "purinet: interrupted\n")
    assert not (tmp_path / "output").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_an_ignored_signal_stays_ignored() -> None:
    program = BEGIN + "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    program += "main._run = lambda _: signal.raise_signal(signal.SIGINT) or 0\nsys.exit(main.main())\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_functions_leave_the_handlers_of_their_program(capsys: pytest.CaptureFixture[str]) -> None:
    from purinet_jax.commands.main import main

    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--version"]) == 0
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
    assert not interrupts.temporary_paths


def test_signals_are_handled_before_anything_large_is_imported() -> None:
    program = (
        "import sys; before = set(sys.modules); import purinet_jax.commands.main;"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('purinet_jax')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = ("purinet_jax", "purinet_jax.commands", "purinet_jax.commands.main", "purinet_jax.interrupts")
    assert done.stdout.split() == [*modules[:3], "purinet_jax.interrupts"]


@pytest.mark.slow
def test_predict_interrupted_at_any_moment_leaves_only_complete_files(tmp_path: Path) -> None:
    check = import_script("interrupt_check")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / "images" / f"{index}.png")
    command = [sys.executable, "-m", "purinet_jax.commands.main", "predict", str(tmp_path / "images"), "-o", "OUT"]
    start = time.monotonic()
    for after in (0.2, 0.6, 1.0, 1.5, 2.2, 3.0):
        took, code, said = check.interrupt(command, tmp_path / "out", after)
        if code == 0 and took < after + check.ENDING:
            continue
        assert check.faults(tmp_path / "out", code, said) == [], after
    assert time.monotonic() - start < 120
