"""What the tables of the pages share."""

from __future__ import annotations


def row(cells: list[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"


def with_error(value: dict[str, float], digits: int) -> str:
    """A mean and its standard error."""
    return f"{value['mean']:.{digits}f} ± {value['standard_error']:.{digits}f}"
