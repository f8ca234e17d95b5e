"""What the commands of this folder share: a result file is written, and an error told, in one way."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from ..runtime.errors import OutzoomError, printable
from ..runtime.files import atomic_file


def write_json(value: object, path: Path) -> None:
    """Write a struct as JSON, a line for each figure, atomically; paths in it become strings."""
    with atomic_file(path) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1) + b"\n")


def complain(error: OutzoomError) -> int:
    """Say on stderr what happened and what to do; the exit code."""
    print(f"error: {printable(str(error))}\n  hint: {printable(error.hint)}", file=sys.stderr)
    return error.exit_code


def footnote(reason: str, reasons: list[str]) -> str:
    """The mark of a reason below a table, which joins `reasons` if it is not there yet."""
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"
