"""Writing packed weights: one at a time, as they are made."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..runtime.bits import pack_bits
from ..runtime.packed import (
    METADATA_KEY,
    REST,
    PackedFile,
    PackedTensor,
    Packing,
    copy_bytes,
    deflate,
    expand,
    gaps,
)  # fmt: skip
from ..runtime.safetensors import METADATA, NUMPY_TYPES, StoredTensor
from .cast import PACKED

ENTROPY_CODED = ("indices", "codes", "values", "mask")
WORTH_FRACTION = 0.98  # of its size: a saving of less is not worth the time to decode
NAME_OF_TYPE = {np.dtype(spelled): name for name, spelled in NUMPY_TYPES.items()}


class PackedWriter:
    """Collects packed weights in a file beside `target`, and makes `target` of them when their places are known."""

    def __init__(self, target: Path, entropy_coding: bool) -> None:
        self.target, self.entropy_coding = target, entropy_coding
        self.body = target.with_suffix(".body")
        self.body.unlink(missing_ok=True)
        self.tensors: list[PackedTensor] = []
        self.stored: dict[str, StoredTensor] = {}
        self._end = 0

    def add(self, tensor: PackedTensor, arrays: Mapping[str, NDArray[Any]], unpacked: Mapping[str, int]) -> int:
        """Store a weight; its number. `unpacked` names arrays of small integers, and how many bits each needs."""
        stored, deflated = stored_form(arrays, unpacked, self.entropy_coding)
        number = len(self.tensors)
        with self.body.open("ab") as stream:
            for name, array in stored.items():
                self.stored[f"{number}.{name}"] = self._append(stream, array)
        self.tensors.append(msgspec.structs.replace(tensor, arrays=tuple(stored), deflated=deflated))
        return number

    def weight(self, number: int) -> NDArray[Any]:
        """A stored weight as the engine will have it."""
        tensor = self.tensors[number]
        return expand(tensor, {name: self.stored[f"{number}.{name}"].read() for name in tensor.arrays})

    def lazy(self, number: int, name: str) -> ir.LazyTensor:
        """A stored weight for a graph, expanded when it is asked for."""
        tensor = self.tensors[number]
        shape = ir.Shape([tensor.matrix_shape[axis] for axis in tensor.permutation])
        kind = ir.DataType.from_numpy(np.dtype(tensor.dtype))
        read = partial(self._tensor, number, name)
        return ir.LazyTensor(read, kind, shape=shape, name=name, metadata_props={PACKED: ""})

    def _tensor(self, number: int, name: str) -> ir.TensorProtocol:
        return ir.tensor(self.weight(number), name=name)

    def finish(self, weights: Path, offsets: Mapping[str, int]) -> None:
        """Write `target`, of which `weights` can be made again; `offsets` says where in it each packed weight is."""
        tensors = tuple(msgspec.structs.replace(tensor, offset=offsets[tensor.name]) for tensor in self.tensors)
        packing = Packing(weights.name, weights.stat().st_size, tensors)
        write_packed(self.target, packing, self.stored, self.body, weights)
        self.body.unlink()

    def _append(self, stream: BinaryIO, array: NDArray[Any]) -> StoredTensor:
        data = np.ascontiguousarray(array)
        stream.write(data.data)
        begin, self._end = self._end, self._end + data.nbytes
        return StoredTensor(self.body, NAME_OF_TYPE[data.dtype], data.shape, begin, data.nbytes)


def stored_form(
    arrays: Mapping[str, NDArray[Any]], unpacked: Mapping[str, int], entropy_coding: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """A weight's arrays as they are stored, bits packed or entropy-coded, and the types of those that are coded."""
    stored, deflated = dict(arrays), dict[str, Any]()
    for name, array in arrays.items():
        plain = pack_bits(array.reshape(-1), unpacked[name]) if name in unpacked else array
        stored[name] = plain
        if entropy_coding and name in ENTROPY_CODED:
            coded = deflate(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            if coded.nbytes < WORTH_FRACTION * plain.nbytes:
                stored[name] = coded
                deflated[name] = array.dtype.name
    return stored, deflated


def repack(source: PackedFile, weights: Path, target: Path) -> list[str]:
    """Write `target` for another engine's weights file; the names of the weights that are not found in it.

    What an engine's converter changed beyond recognition is stored as that engine has it.
    """
    places = _Places(weights)
    found: list[tuple[int, PackedTensor]] = []
    lost = []
    for index, tensor in enumerate(source.packing.tensors):
        offset = places.take(source.weight(index).tobytes())
        if offset is None:
            lost.append(tensor.name)
        else:
            found.append((index, msgspec.structs.replace(tensor, offset=offset)))
    stored = {
        f"{new}.{name}": source.stored[f"{old}.{name}"]
        for new, (old, tensor) in enumerate(found) for name in tensor.arrays
    }  # fmt: skip
    packing = Packing(weights.name, weights.stat().st_size, tuple(tensor for _, tensor in found))
    write_packed(target, packing, stored, source.path, weights)
    return lost


class _Places:
    """Where in a weights file some bytes are, each place taken once."""

    def __init__(self, weights: Path) -> None:
        with weights.open("rb") as stream:
            self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.taken: list[tuple[int, int]] = []

    def take(self, wanted: bytes) -> int | None:
        """A free place that holds `wanted`: the next after the last one, or else the first."""
        for start in (self.taken[-1][1] if self.taken else 0, 0):
            while (offset := self.data.find(wanted, start)) >= 0:
                end = offset + len(wanted)
                if all(end <= begin or offset >= stop for begin, stop in self.taken):
                    self.taken.append((offset, end))
                    return offset
                start = offset + 1
        return None


def write_packed(target: Path, packing: Packing, stored: Mapping[str, StoredTensor], body: Path, weights: Path) -> None:
    """Write a safetensors file of `stored`, read from `body`, and of what else is in `weights`."""
    holes = gaps(packing)
    sizes = {name: tensor.size_bytes for name, tensor in stored.items()}
    sizes |= {REST: sum(end - begin for begin, end in holes)} if holes else {}
    header: dict[str, Any] = {METADATA: {METADATA_KEY: msgspec.json.encode(packing).decode()}}
    position = 0
    for name, size_bytes in sizes.items():
        shape, dtype = (stored[name].shape, stored[name].dtype) if name in stored else ((size_bytes,), "U8")
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size_bytes]}
        position += size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        with body.open("rb") as source:
            for tensor in stored.values():
                copy_bytes(source, stream, tensor.offset, tensor.size_bytes)
        with weights.open("rb") as source:
            for begin, end in holes:
                copy_bytes(source, stream, begin, end - begin)
