"""The errors that end a command with one line on standard error, and the exit codes that belong to them."""

from collections.abc import Sequence

# Control characters and Unicode's separators of lines, which names of files may hold.
_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class InputError(ValueError):
    """A file, folder, option or configuration that cannot be used; the message names it in one line."""

    def __init__(self, message: str) -> None:
        """Escapes control characters in the message."""
        super().__init__(escaped(message))


class RunFailure(RuntimeError):
    """A training run that ended early through no fault of its input; the message is one line."""


def outcome(error: BaseException) -> tuple[int, str]:
    """Returns the exit code of a command that an error ends, and the line to print."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    return 2 if isinstance(error, InputError) else 1, str(error) or type(error).__name__


def escaped(text: str) -> str:
    """Returns a text in one line: its control characters are escaped, such as to "\\n"."""
    return text.translate(_ESCAPES)


def summarise(names: Sequence[str], what: str) -> str:
    """Returns the count of names and the first three of them: "4 images: a, b, c, …"."""
    listed = ", ".join(names[:3])
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}: {listed}{', …' if len(names) > 3 else ''}"
