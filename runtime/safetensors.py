"""Where the tensors lie in a safetensors file, read from its header alone.

Source: the safetensors format: 8 bytes little-endian header length, a JSON header, then the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import UserError

MAX_HEADER_BYTES = 100 * 2**20
METADATA = "__metadata__"
AGAIN = "download it again"
BYTES_PER_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}  # what weights of a checkpoint may be
NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}
KNOWN_TYPES = ", ".join(NUMPY_TYPES)


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

    def read(self) -> NDArray[Any]:
        """The tensor read from the file, in its own type; raises UserError for other types and a shortened file."""
        if self.dtype not in NUMPY_TYPES:
            raise UserError(f"a tensor of '{self.file}' is {self.dtype}", hint="packed weights are " + KNOWN_TYPES)
        dtype = np.dtype(NUMPY_TYPES[self.dtype])
        count = math.prod(self.shape)
        if self.size_bytes != count * dtype.itemsize:
            raise UserError(f"a tensor of '{self.file}' has {self.size_bytes} bytes for the shape {self.shape}")
        data = np.fromfile(self.file, dtype, count, offset=self.offset)
        if data.size != count:
            raise UserError(f"'{self.file}' ends in the middle of a tensor", hint="did it change while it was read?")
        return data.reshape(self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, every offset and size checked against the file; raises UserError.

    Their `file` is where a symbolic link leads, such as those of the hub's cache.
    """
    total, target = file.stat().st_size, file.resolve()
    header, data_start = _decoded_header(file)
    header.pop(METADATA, None)
    try:
        return {name: _stored_tensor(target, name, raw, data_start, total) for name, raw in header.items()}
    except ValueError as error:  # msgspec's own errors are ValueErrors
        raise UserError(f"'{file}' is damaged: {error}", hint=AGAIN) from error


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; raises UserError."""
    header, _ = _decoded_header(file)
    try:
        return msgspec.json.decode(header.get(METADATA, b"{}"), type=dict[str, str])
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is damaged: {error}", hint=AGAIN) from error


def _decoded_header(file: Path) -> tuple[dict[str, msgspec.Raw], int]:
    """The header, and where the data after it begin."""
    total = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, total - 8):
            raise UserError(f"'{file}' is damaged: its header claims {length} bytes, the file has {total}", hint=AGAIN)
        try:
            return msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw]), 8 + length
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{file}' is damaged: {error}", hint=AGAIN) from error


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
