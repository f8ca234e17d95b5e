"""Packed weights: as a bundle stores them, and how they become the weights file that an engine opens.

One safetensors file holds the weights of an engine: those that a technique made small, in that technique's own form,
and the rest as it is. Each weight is a matrix, its rows the output channels; it is expanded a few rows at a time, so
that memory stays near the size of the largest weight as the engine has it.
"""

from __future__ import annotations

import itertools
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .bits import unpack_bits
from .bundle import MAX_RANK
from .errors import BundleError, OutzoomError
from .files import link_or_copy
from .safetensors import StoredTensor, read_header, read_metadata

PACKED_NAME = "packed.safetensors"
METADATA_KEY = "outzoom"
CHUNK_ELEMENTS = 2**21
MAX_ELEMENTS = 2**28  # of a weight; the largest of SD2 has 50 million
REST = "rest"
DAMAGED = "copy the bundle again, or build it again"

Matrix = NDArray[Any]
Arrays = Mapping[str, NDArray[Any]]
ArrayType = Literal["uint8", "int8", "float16", "float32"]
Small = Annotated[int, msgspec.Meta(ge=1, le=128)]


class Shared(msgspec.Struct, frozen=True, tag="shared"):
    """A codebook for each group of rows, and an index of `bits` bits for each weight."""

    bits: Annotated[int, msgspec.Meta(ge=1, le=8)]


class Blocks(msgspec.Struct, frozen=True, tag="blocks"):
    """Four bits for each weight; a scale and a zero point for each `block` weights of a row."""

    block: Small


class Pruned(msgspec.Struct, frozen=True, tag="pruned"):
    """A bit for each weight that says whether it is kept, and those that are."""


class Sparse(msgspec.Struct, frozen=True, tag="sparse"):
    """Of each `m` neighbours in a row the `n` that are kept, and where they were."""

    n: Small
    m: Small


class Plain(msgspec.Struct, frozen=True, tag="plain"):
    """Every weight in the engine's type: smaller only if an entropy coder makes it so."""


Storage = Shared | Blocks | Pruned | Sparse | Plain


class PackedTensor(msgspec.Struct, frozen=True):
    """How a weight is stored, and what it becomes.

    `rows` and `columns` are those of the matrix; `permutation` turns it, shaped `matrix_shape`, into the engine's
    tensor of type `dtype`. For int8 the array `row_scales` says what one step is worth in each row.
    """

    name: str
    storage: Storage
    dtype: Literal["float32", "float16", "int8"]
    matrix_shape: tuple[int, ...]  # the first is the rows
    permutation: tuple[int, ...]
    arrays: tuple[str, ...]
    deflated: dict[str, ArrayType] = {}  # those of the arrays that zlib made smaller, and what they hold
    offset: int = 0  # in the weights file

    @property
    def rows(self) -> int:
        """Of the matrix: output channels."""
        return self.matrix_shape[0]

    @property
    def columns(self) -> int:
        """Of the matrix: inputs of an output channel."""
        return math.prod(self.matrix_shape[1:])

    @property
    def size_bytes(self) -> int:
        """In the weights file."""
        return self.rows * self.columns * np.dtype(self.dtype).itemsize


class Packing(msgspec.Struct, frozen=True):
    """What the metadata of a packed file says: the weights file to make, and the weights that go into it."""

    weights_file: str
    size_bytes: int
    tensors: tuple[PackedTensor, ...]


@dataclass(frozen=True)
class PackedFile:
    """An opened packed file."""

    path: Path
    packing: Packing
    stored: dict[str, StoredTensor]

    def weight(self, index: int) -> NDArray[Any]:
        """A weight as the engine has it."""
        tensor = self.packing.tensors[index]
        arrays = {name: self.stored[f"{index}.{name}"].read() for name in tensor.arrays}
        return expand(tensor, arrays)


def open_packed(file: Path) -> PackedFile:
    """Open a packed file and check what it says of itself; raises BundleError for a damaged one."""
    try:
        stored = read_header(file)
        packing = msgspec.json.decode(read_metadata(file).get(METADATA_KEY, ""), type=Packing)
        _check(packing, stored)
    except (OutzoomError, ValueError, RecursionError) as error:
        raise BundleError(f"the packed weights '{file}' are damaged: {error}", hint=DAMAGED) from error
    return PackedFile(file, packing, stored)


@contextmanager
def unpacked(engine: Path, packed: Path) -> Iterator[Path]:
    """The engine beside its whole weights file, in a temporary folder that is removed at the end."""
    with TemporaryDirectory(prefix="outzoom-", ignore_cleanup_errors=True) as folder:
        unpack_beside(engine, packed, Path(folder))
        yield Path(folder) / engine.name


def unpack_beside(engine: Path, packed: Path, folder: Path) -> None:
    """Put the engine and its whole weights file into a folder; raises OutzoomError when there is no room for them."""
    file = open_packed(packed)
    if file.packing.weights_file == engine.name:
        raise BundleError(f"the packed weights '{packed}' would replace the engine", hint=DAMAGED)
    if file.packing.size_bytes > shutil.disk_usage(folder).free:
        megabytes = file.packing.size_bytes / 1e6
        raise OutzoomError(
            f"there is no room for the {megabytes:.0f} MB of weights of '{engine}' in '{folder}'",
            hint="make some, or name another folder in the environment variables OUTZOOM_CACHE and TMPDIR",
        )
    link_or_copy(engine, folder / engine.name)
    unpack(file, folder / file.packing.weights_file)


def unpack(file: PackedFile, target: Path) -> None:
    """Write a new weights file; raises BundleError for arrays that do not hold what they should."""
    with target.open("xb") as stream:
        for index, tensor in enumerate(file.packing.tensors):
            try:
                weight = file.weight(index)
            except (ValueError, TypeError, OverflowError, IndexError, KeyError, zlib.error) as error:
                message = f"the packed weight '{tensor.name}' of '{file.path}' is damaged: {error}"
                raise BundleError(message, hint=DAMAGED) from error
            stream.seek(tensor.offset)
            stream.write(weight.data)
        position = 0
        with file.path.open("rb") as source:
            for begin, end in gaps(file.packing):
                stream.seek(begin)
                copy_bytes(source, stream, file.stored[REST].offset + position, end - begin)
                position += end - begin


def gaps(packing: Packing) -> list[tuple[int, int]]:
    """The parts of the weights file that no packed tensor fills, as (begin, end)."""
    found, position = [], 0
    for tensor in sorted(packing.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset > position:
            found.append((position, tensor.offset))
        position = tensor.offset + tensor.size_bytes
    return [*found, (position, packing.size_bytes)] if position < packing.size_bytes else found


def expand(tensor: PackedTensor, arrays: Arrays) -> NDArray[Any]:
    """The engine's tensor, C-contiguous, of the arrays that store it; raises ValueError if they do not fit."""
    arrays = {name: _inflated(tensor, name, array) for name, array in arrays.items()}
    decode = DECODERS[type(tensor.storage)](tensor, arrays)
    matrix = np.empty((tensor.rows, tensor.columns), tensor.dtype)
    step = max(8, CHUNK_ELEMENTS // tensor.columns // 8 * 8)  # eight rows of any bits are whole bytes
    for begin in range(0, tensor.rows, step):
        end = min(begin + step, tensor.rows)
        matrix[begin:end] = _in_type(tensor, decode(begin, end), arrays, begin, end)
    return np.ascontiguousarray(matrix.reshape(tensor.matrix_shape).transpose(tensor.permutation))


def _in_type(tensor: PackedTensor, rows: Matrix, arrays: Arrays, begin: int, end: int) -> Matrix:
    """Decoded rows in the engine's type; what is float32 becomes whole steps of int8 by the scale of its row."""
    if tensor.dtype == "int8" and rows.dtype == np.float32:
        scales = arrays["row_scales"].reshape(-1)[begin:end, None]
        return np.clip(np.rint(rows / scales), -127, 127).astype(np.int8)
    return rows.astype(tensor.dtype, copy=False)


Decoder = Callable[[int, int], Matrix]


def _shared(tensor: PackedTensor, arrays: Arrays) -> Decoder:
    assert isinstance(tensor.storage, Shared)
    bits, columns = tensor.storage.bits, tensor.columns
    indices, codebook = arrays["indices"].reshape(-1), arrays["codebook"]
    if codebook.ndim != 2 or codebook.shape[1] != 2**bits or not codebook.shape[0] or tensor.rows % len(codebook):
        raise ValueError(f"a codebook of shape {codebook.shape} for {bits} bits and {tensor.rows} rows")
    group_rows = tensor.rows // len(codebook)
    whole_bytes = "indices" in tensor.deflated  # an entropy coder does better with one index in each byte

    def decode(begin: int, end: int) -> Matrix:
        count = (end - begin) * columns
        if whole_bytes:
            chosen = indices[begin * columns : end * columns]
        else:
            chosen = unpack_bits(indices[begin * columns * bits // 8 :], bits, count)
        groups = np.arange(begin, end) // group_rows
        found: Matrix = codebook[groups[:, None], chosen.reshape(end - begin, columns)]
        return found

    return decode


def _blocks(tensor: PackedTensor, arrays: Arrays) -> Decoder:
    assert isinstance(tensor.storage, Blocks)
    block, columns = tensor.storage.block, tensor.columns
    codes = arrays["codes"].reshape(-1)
    blocks = -(-columns // block)
    scales = arrays["scales"].reshape(tensor.rows, blocks)
    zero_points = arrays["zero_points"].reshape(tensor.rows, blocks) if "zero_points" in arrays else None
    of_column = np.arange(columns) // block

    def decode(begin: int, end: int) -> Matrix:
        count = (end - begin) * columns
        if "codes" in tensor.deflated:
            found = codes[begin * columns : end * columns]
        else:
            found = unpack_bits(codes[begin * columns // 2 :], 4, count)
        zero = np.uint8(8) if zero_points is None else zero_points[begin:end, of_column]
        centred = found.reshape(end - begin, columns).astype(np.float32) - zero
        product: Matrix = centred * scales[begin:end, of_column].astype(np.float32)
        return product

    return decode


def _pruned(tensor: PackedTensor, arrays: Arrays) -> Decoder:
    kept = np.unpackbits(arrays["mask"].reshape(-1), count=tensor.rows * tensor.columns, bitorder="little")
    rows = kept.view(bool).reshape(tensor.rows, tensor.columns)
    ends = np.concatenate([[0], np.cumsum(rows.sum(1, dtype=np.int64))])
    values = arrays["values"].reshape(-1)
    if len(values) != ends[-1]:
        raise ValueError(f"{len(values)} values for {ends[-1]} places")

    def decode(begin: int, end: int) -> Matrix:
        found = np.zeros((end - begin, tensor.columns), values.dtype)
        found[rows[begin:end]] = values[ends[begin] : ends[end]]
        return found

    return decode


def _sparse(tensor: PackedTensor, arrays: Arrays) -> Decoder:
    assert isinstance(tensor.storage, Sparse)
    n, m = tensor.storage.n, tensor.storage.m
    if not n < m:
        raise ValueError(f"{n} of {m} are kept")
    groups, bits = -(-tensor.columns // m), max(1, math.ceil(math.log2(m)))
    values = arrays["values"].reshape(tensor.rows, groups * n)
    places = arrays["indices"].reshape(-1)

    def decode(begin: int, end: int) -> Matrix:
        count = (end - begin) * groups * n
        at = unpack_bits(places[begin * groups * n * bits // 8 :], bits, count).reshape(end - begin, groups, n)
        found = np.zeros((end - begin, groups, m), values.dtype)
        np.put_along_axis(found, at.astype(np.int64), values[begin:end].reshape(end - begin, groups, n), axis=2)
        return found.reshape(end - begin, groups * m)[:, : tensor.columns]

    return decode


def _plain(tensor: PackedTensor, arrays: Arrays) -> Decoder:
    values = arrays["values"].reshape(tensor.rows, tensor.columns)
    return lambda begin, end: values[begin:end]


DECODERS: dict[type[Any], Callable[[PackedTensor, Arrays], Decoder]] = {
    Shared: _shared, Blocks: _blocks, Pruned: _pruned, Sparse: _sparse, Plain: _plain,
}  # fmt: skip


def deflate(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes entropy-coded by zlib, with Huffman codes alone: weights do not repeat, but some are more frequent."""
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(array.tobytes()) + coder.flush(), np.uint8)


def _inflated(tensor: PackedTensor, name: str, array: NDArray[Any]) -> NDArray[Any]:
    if name not in tensor.deflated:
        return array
    most = tensor.rows * tensor.columns * np.dtype(tensor.dtype).itemsize  # more would be more than a weight's bytes
    inflater = zlib.decompressobj()
    data = inflater.decompress(array.tobytes(), most + 1)
    if len(data) > most or not inflater.eof:
        raise ValueError(f"'{name}' holds more than {most} bytes, or is cut off")
    return np.frombuffer(data, tensor.deflated[name])


def _check(packing: Packing, stored: Mapping[str, StoredTensor]) -> None:
    name = packing.weights_file
    if not name or Path(name).name != name or not name.isprintable() or name.startswith("."):
        raise ValueError(f"the weights file is called {name!r}")
    position = 0
    for index, tensor in sorted(enumerate(packing.tensors), key=lambda item: item[1].offset):
        fits = 2 <= len(tensor.matrix_shape) <= MAX_RANK and min(tensor.matrix_shape) > 0
        fits = fits and math.prod(tensor.matrix_shape) <= MAX_ELEMENTS
        if not fits or sorted(tensor.permutation) != list(range(len(tensor.matrix_shape))):
            raise ValueError(f"the matrix of '{tensor.name}' has the shape {tensor.matrix_shape[:8]}")
        if tensor.offset < position or tensor.offset + tensor.size_bytes > packing.size_bytes:
            raise ValueError(f"'{tensor.name}' lies outside the weights file, or on another weight")
        position = tensor.offset + tensor.size_bytes
        if missing := [array for array in tensor.arrays if f"{index}.{array}" not in stored]:
            raise ValueError(f"'{tensor.name}' lacks its {', '.join(missing)}")
    ends = sorted((tensor.offset, tensor.offset + tensor.size_bytes) for tensor in stored.values())
    if any(end > begin for (_, end), (begin, _) in itertools.pairwise(ends)):
        raise ValueError("arrays lie on one another")
    rest = sum(end - begin for begin, end in gaps(packing))
    if (stored[REST].size_bytes if REST in stored else 0) != rest:
        raise ValueError(f"the rest of the weights is not {rest} bytes")


def copy_bytes(source: BinaryIO, target: BinaryIO, offset: int, count: int) -> None:
    """Copy `count` bytes from `offset` on, a piece at a time; raises BundleError if there are fewer."""
    source.seek(offset)
    while count > 0:
        data = source.read(min(count, 1 << 20))
        if not data:
            raise BundleError("the packed weights end too early", hint=DAMAGED)
        target.write(data)
        count -= len(data)
