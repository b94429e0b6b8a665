"""Formulas of the documentation: ```math blocks, which GitHub draws, become MathML, which browsers draw without any
script."""

from html import escape
from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Hands `formula` to the extension that reads code blocks (MkDocs calls this hook once)."""
    fences = config["mdx_configs"].setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "formula", "format": formula})
    return config


def formula(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **rest: Any) -> str:
    """One block of LaTeX as MathML, with its source for those who cannot see it."""
    return f'<div class="{css_class}" title="{escape(source)}">{convert(source, display="block")}</div>'
