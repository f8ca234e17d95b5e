"""The JSON schema of `results.json`: `python -m outzoom.benchmarks.schema` writes docs/results.schema.json.

A version's schema only grows: what old files lack is null or empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from .results import SCHEMA_VERSION, Results
from .scripts import write_json

FILE = Path(__file__).parent.parent / "docs" / "results.schema.json"


def results_schema() -> dict[str, Any]:
    """JSON Schema 2020-12, with the docstrings as descriptions."""
    found = msgspec.json.schema(Results, schema_hook=_path)
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"outzoom bench {SCHEMA_VERSION}"}
    return {**title, **found}


def _path(kind: type) -> dict[str, Any]:
    if kind is Path:
        return {"type": "string"}
    raise NotImplementedError(kind)


if __name__ == "__main__":
    write_json(results_schema(), FILE)
