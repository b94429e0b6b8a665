"""What a reader of the documentation types: the code blocks of a page, the `purinet …` commands in them, and whether
the command line takes them."""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from purinet_jax.commands.main import build_parser
from purinet_jax.training.configurations import load_config


class Block(NamedTuple):
    """A code block: its language, what its title says it needs (nothing, if the tests can run it) and its text."""

    language: str
    needs: str
    text: str


def blocks_in(page: str) -> Iterator[Block]:
    """The fenced code blocks of a page in Markdown."""
    for language, title, text in re.findall(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', page, re.M | re.S):
        yield Block(language, title.removeprefix("needs "), text)


def commands_in(text: str) -> list[str]:
    """The `purinet …` commands in a text: lines in code blocks, joined where a backslash ends them."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("purinet ")]


def parses(command: str) -> None:
    """Fails unless the command line would take this command; a training one's overrides must be settings."""
    program, *words = shlex.split(re.split(" [<>] ", command)[0], comments=True)
    assert program == "purinet"
    try:
        arguments, rest = build_parser().parse_known_args(words)
    except SystemExit as error:
        pytest.fail(f"{command}: exit code {error.code}")
    if arguments.command in ("train", "finetune"):
        load_config(getattr(arguments, "config", "finetune"), rest)
    else:
        assert not rest, command
