"""What the commands of this folder share: a result file is written, and an error told, in one way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from ..runtime.errors import OutzoomError, UserError, printable
from ..runtime.files import atomic_file

Struct = TypeVar("Struct")


def write_json(value: object, path: Path) -> None:
    """Write a struct as JSON, a line for each figure, atomically; paths in it become strings."""
    with atomic_file(path) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1) + b"\n")


def read_json(path: Path, kind: type[Struct], message: str, hint: str) -> Struct:
    """What `write_json` wrote of a struct; raises UserError with the message, and what is wrong, for another file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"'{path}' {message}: {error}", hint=hint) from error


def complain(error: OutzoomError) -> int:
    """Say on stderr what happened and what to do; the exit code."""
    print(f"error: {printable(str(error))}\n  hint: {printable(error.hint)}", file=sys.stderr)
    return error.exit_code


def footnote(reason: str, reasons: list[str]) -> str:
    """The mark of a reason below a table, which joins `reasons` if it is not there yet."""
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"
