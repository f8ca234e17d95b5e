"""What the pages share: how a template becomes HTML, and their style."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import printable

FOLDER = Path(__file__).parent


def render(template: str, filters: dict[str, Callable[..., Any]], **values: Any) -> str:
    """A template of this folder as HTML. Names and texts in the values are escaped, and put on one line."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
