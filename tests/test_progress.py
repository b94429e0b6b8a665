"""Progress bars: a live one on a terminal, a few lines elsewhere."""

import pytest

from purinet_jax.progress import progress_bar


def test_without_a_terminal_progress_is_a_line_at_the_start_one_per_tenth_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress_bar(range(1003), total=1003, desc="predicting", unit="image")) == [*range(1003)]
    error = capsys.readouterr().err
    assert "\r" not in error
    lines = error.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("predicting:   0%, 0/1003 [")
    assert lines[1].startswith("predicting:  10%, 100/1003 [")
    assert lines[-1].startswith("predicting: 100%, 1003/1003 [")


def test_an_inner_bar_moves_no_cursor_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    outer = progress_bar(total=4, initial=2, desc="training")
    for _ in range(2):
        outer.update()
        assert [*progress_bar(range(2), total=2, desc="validation", leave=False)] == [0, 1]
    outer.close()
    lines = capsys.readouterr().err.splitlines()
    assert "\x1b" not in "".join(lines)
    assert [line.partition(" [")[0] for line in lines if line.startswith("training")] == [
        "training:  50%, 2/4",
        "training:  75%, 3/4",
        "training: 100%, 4/4",
    ]


def test_a_bar_that_is_not_shown_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert [*progress_bar(range(20), total=20, shown=False)] == [*range(20)]
    assert capsys.readouterr().err == ""
