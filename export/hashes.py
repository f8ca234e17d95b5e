"""Hashes that what is built is keyed by: of the checkpoint's files, remembered, and of the code that builds."""

from __future__ import annotations

import contextlib
import hashlib
from functools import cache
from pathlib import Path

import msgspec

from ..runtime.files import atomic_file, sha256_of

BUILDERS = ("export", "compress", "runtime")


class Remembered(msgspec.Struct, frozen=True):
    """The hash of a file that had this size and these times."""

    size_bytes: int
    modified_ns: int
    changed_ns: int
    sha256: str


class HashMemory:
    """The hashes of files, kept in a file of its own: gigabytes are read again only if they may have changed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Remembered] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self.known = msgspec.json.decode(file.read_bytes(), type=dict[str, Remembered])

    def sha256_of(self, file: Path) -> str:
        """The hash of a file, from memory if its size and times are those of the last time."""
        state = file.stat()
        name = str(file.resolve())
        found = self.known.get(name)
        seen = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if found is None or (found.size_bytes, found.modified_ns, found.changed_ns) != seen:
            self.known[name] = found = Remembered(*seen, sha256_of(file))
            with atomic_file(self.file) as partial:
                partial.write_bytes(msgspec.json.encode(self.known))
        return found.sha256


@cache
def code_sha256() -> str:
    """One hash over the source of all that takes part in a build: another version makes other results."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in BUILDERS:
        for file in sorted((root / folder).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
