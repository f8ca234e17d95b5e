"""Where the tensors lie in a safetensors file, read from its header alone.

Source: the safetensors format: 8 bytes little-endian header length, a JSON header, then the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError

MAX_HEADER_BYTES = 100 * 2**20
BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}


class HeaderEntry(msgspec.Struct):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie in a safetensors file."""

    file: Path
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def float32(self) -> NDArray[np.float32]:
        """The tensor read from the file, as float32; a copy, so that no page of the file stays in memory.

        Raises UserError for a type that is no floating-point number of 16 or 32 bits, and for a shortened file.
        """
        if self.dtype not in BYTES_PER_ELEMENT:
            raise UserError(f"a tensor of '{self.file}' is {self.dtype}", hint="weights must be F32, F16 or BF16")
        stored = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype])
        data = np.fromfile(self.file, stored, math.prod(self.shape), offset=self.offset)
        if data.size != math.prod(self.shape):
            raise UserError(f"'{self.file}' ends in the middle of a tensor", hint="did it change while it was read?")
        if self.dtype == "BF16":  # the upper half of a float32
            data = (data.astype(np.uint32) << 16).view(np.float32)
        return data.reshape(self.shape).astype(np.float32, copy=False)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, every offset and size checked against the file; raises UserError.

    Their `file` is where a symbolic link leads, such as those of the hub's cache.
    """
    total, target = file.stat().st_size, file.resolve()
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, total - 8):
            raise UserError(
                f"'{file}' is damaged: its header claims {length} bytes, the file has {total}", hint="download it again"
            )
        try:
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            return {name: _stored_tensor(target, name, raw, 8 + length, total) for name, raw in header.items()}
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            raise UserError(f"'{file}' is damaged: {error}", hint="download it again") from error


def _stored_tensor(file: Path, name: str, raw: msgspec.Raw, data_start: int, total: int) -> StoredTensor:
    try:
        entry = msgspec.json.decode(raw, type=HeaderEntry)
    except msgspec.ValidationError as error:
        raise ValueError(f"tensor '{name}': {error}") from error
    dtype, shape, (begin, end) = entry.dtype, entry.shape, entry.data_offsets
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= total - data_start:
        raise ValueError(f"tensor '{name}' of shape {shape} at {begin}..{end} lies outside the file")
    if dtype in BYTES_PER_ELEMENT and end - begin != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        raise ValueError(f"the {dtype} tensor '{name}' of shape {shape} has {end - begin} bytes")
    return StoredTensor(file, dtype, shape, data_start + begin, end - begin)
