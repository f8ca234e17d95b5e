"""Packed weights: what is stored comes back as the engine had it, to the last bit, and what is damaged is refused."""

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.compress.packing import PackedWriter, repack
from outzoom.runtime import BundleError, OutzoomError
from outzoom.runtime.bits import pack_bits
from outzoom.runtime.packed import (
    METADATA_KEY,
    Blocks,
    PackedTensor,
    Plain,
    Pruned,
    Shared,
    Sparse,
    deflate,
    expand,
    open_packed,
    unpack,
    unpacked,
)


def tensor_of(storage, dtype, shape, permutation=(0, 1), deflated=None):
    return PackedTensor("w", storage, dtype, shape, permutation, (), deflated or {})


def test_shared_weights_are_looked_up_in_the_codebook_of_their_rows():
    indices = np.array([0, 1, 2, 3, 3, 2, 1, 0], np.uint8)
    codebook = np.array([[-1, 0, 1.5, 2], [10, 20, 30, 40]], np.float32)
    arrays = {"indices": pack_bits(indices, 2), "codebook": codebook}
    assert expand(tensor_of(Shared(2), "float32", (2, 4)), arrays).tolist() == [[-1, 0, 1.5, 2], [40, 30, 20, 10]]


def test_blocks_are_scaled_about_their_zero_points():
    codes = np.array([8, 9, 7, 0] * 8 + [15], np.uint8)  # a block of 32, and one of 1
    arrays = {
        "codes": pack_bits(codes, 4),
        "scales": np.array([[0.5, 2]], np.float16),
        "zero_points": np.array([[8, 3]], np.uint8),
    }
    row = expand(tensor_of(Blocks(32), "float32", (1, 33)), arrays)[0]
    assert row[:4].tolist() == [0, 0.5, -0.5, -4]
    assert row[-1] == (15 - 3) * 2
    del arrays["zero_points"]  # symmetric: all are 8
    assert expand(tensor_of(Blocks(32), "float32", (1, 33)), arrays)[0][-1] == (15 - 8) * 2


def test_pruned_weights_are_zero_between_those_that_are_kept():
    mask = np.packbits([1, 0, 0, 1, 0, 1], bitorder="little")
    arrays = {"mask": mask, "values": np.array([1, 2, 3], np.int8), "row_scales": np.ones(2, np.float32)}
    assert expand(tensor_of(Pruned(), "int8", (2, 3)), arrays).tolist() == [[1, 0, 0], [2, 0, 3]]


def test_sparse_weights_go_back_to_where_they_were():
    values = np.array([[1, 2, 3, 0]], np.float16)
    positions = np.array([0, 3, 1, 0], np.uint8)
    arrays = {"values": values, "indices": pack_bits(positions, 2)}
    assert expand(tensor_of(Sparse(2, 4), "float16", (1, 8)), arrays).tolist() == [[1, 0, 0, 2, 0, 3, 0, 0]]


def test_what_is_stored_as_numbers_becomes_whole_steps_of_its_row():
    arrays = {
        "indices": pack_bits(np.array([0, 1, 1, 0], np.uint8), 1),
        "codebook": np.array([[-1.0, 0.5]], np.float32),
        "row_scales": np.array([0.25, 0.005], np.float32),  # the second row's -200 and 100 steps go to -127 at least
    }
    assert expand(tensor_of(Shared(1), "int8", (2, 2)), arrays).tolist() == [[-4, 2], [100, -127]]


def test_the_matrix_is_turned_into_the_engines_tensor():
    values = np.arange(12, dtype=np.float32)
    matrix_shape = (2, 3, 1, 2)  # outputs, kernel, inputs
    made = expand(tensor_of(Plain(), "float32", matrix_shape, (0, 3, 1, 2)), {"values": values})
    assert made.shape == (2, 2, 3, 1)
    assert np.array_equal(made, values.reshape(matrix_shape).transpose(0, 3, 1, 2))
    assert made.flags.c_contiguous


def test_rows_beyond_one_chunk_are_expanded_too(monkeypatch):
    monkeypatch.setattr("outzoom.runtime.packed.CHUNK_ELEMENTS", 24)  # eight rows of three at a time
    indices = np.random.default_rng(0).integers(0, 8, 37 * 3).astype(np.uint8)
    codebook = np.arange(8, dtype=np.float32)[None]
    arrays = {"indices": pack_bits(indices, 3), "codebook": codebook}
    assert np.array_equal(expand(tensor_of(Shared(3), "float32", (37, 3)), arrays).ravel(), indices)


def stored_weights(folder, *, entropy_coding, rest=b"abc", dtype="float32"):
    """A packed file of one weight, and the weights file that it stands for: the rest, the weight, the rest."""
    rng = np.random.default_rng(1)
    indices = rng.choice(4, (6, 8), p=[0.9, 0.05, 0.03, 0.02]).astype(np.uint8)
    codebook = np.array([[0, -1, 1, 2]], np.float32)
    writer = PackedWriter(folder / "packed.safetensors", entropy_coding)
    number = writer.add(
        tensor_of(Shared(2), dtype, (6, 8), (1, 0)), {"indices": indices, "codebook": codebook}, {"indices": 2}
    )
    weight = codebook[0][indices].T.astype(dtype)
    assert np.array_equal(writer.weight(number), weight)
    assert np.array_equal(writer.lazy(number, "w").numpy(), weight)
    weights = folder / "model.onnx.data"
    weights.write_bytes(rest + weight.tobytes() + rest)
    writer.finish(weights, {"w": len(rest)})
    return weights


@pytest.mark.parametrize("entropy_coding", [True, False])
@pytest.mark.parametrize("rest", [b"abc", b""])
def test_the_weights_file_comes_back_byte_for_byte(tmp_path, entropy_coding, rest):
    weights = stored_weights(tmp_path, entropy_coding=entropy_coding, rest=rest)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx.data", "packed.safetensors"]
    packed = open_packed(tmp_path / "packed.safetensors")
    assert packed.packing.weights_file == "model.onnx.data"
    unpack(packed, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()


def test_what_an_entropy_coder_makes_smaller_is_stored_so(tmp_path):
    """Two bits of a weight that is nearly always 0 are less than one."""
    (tmp_path / "coded").mkdir()
    (tmp_path / "plain").mkdir()
    for folder, coding in (("coded", True), ("plain", False)):
        stored_weights(tmp_path / folder, entropy_coding=coding)
    coded, plain = (open_packed(tmp_path / name / "packed.safetensors") for name in ("coded", "plain"))
    assert coded.stored["0.indices"].size_bytes >= 12  # 48 short indices: zlib's own header outweighs the gain
    assert plain.stored["0.indices"].size_bytes == 12
    many = np.random.default_rng(0).choice(4, 100_000, p=[0.9, 0.05, 0.03, 0.02]).astype(np.uint8)
    writer = PackedWriter(tmp_path / "many.safetensors", entropy_coding=True)
    arrays = {"indices": many.reshape(100, 1000), "codebook": np.zeros((1, 4), np.float32)}
    writer.add(tensor_of(Shared(2), "float32", (100, 1000)), arrays, {"indices": 2})
    assert writer.tensors[0].deflated == {"indices": "uint8"}
    assert writer.stored["0.indices"].size_bytes < 100_000 * 1.25 / 8  # Huffman: at least a bit each, here 1.15
    assert np.array_equal(writer.weight(0), np.zeros((100, 1000)))


def test_packed_weights_are_found_again_in_another_engines_file(tmp_path):
    weights = stored_weights(tmp_path, entropy_coding=True)
    weight = weights.read_bytes()[3:-3]
    other = tmp_path / "openvino_model.bin"
    other.write_bytes(b"12345" + weight + b"6")
    assert repack(open_packed(tmp_path / "packed.safetensors"), other, tmp_path / "other.safetensors") == []
    packed = open_packed(tmp_path / "other.safetensors")
    assert packed.packing.tensors[0].offset == 5
    unpack(packed, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == other.read_bytes()


def test_what_a_converter_changed_is_stored_as_it_is(tmp_path):
    stored_weights(tmp_path, entropy_coding=True)
    other = tmp_path / "openvino_model.bin"
    other.write_bytes(bytes(range(250)))
    assert repack(open_packed(tmp_path / "packed.safetensors"), other, tmp_path / "other.safetensors") == ["w"]
    unpack(open_packed(tmp_path / "other.safetensors"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == other.read_bytes()


def test_equal_weights_get_places_of_their_own(tmp_path):
    writer = PackedWriter(tmp_path / "packed.safetensors", entropy_coding=False)
    for name in "ab":
        tensor = msgspec.structs.replace(tensor_of(Plain(), "float32", (2, 2)), name=name)
        writer.add(tensor, {"values": np.ones((2, 2), np.float32)}, {})
    weights = tmp_path / "weights"
    weights.write_bytes(np.ones(8, np.float32).tobytes())
    writer.finish(weights, {"a": 0, "b": 16})
    other = tmp_path / "other"
    other.write_bytes(b"__" + np.ones(8, np.float32).tobytes())
    assert repack(open_packed(tmp_path / "packed.safetensors"), other, tmp_path / "other.safetensors") == []
    places = open_packed(tmp_path / "other.safetensors").packing.tensors
    assert sorted(tensor.offset for tensor in places) == [2, 18]


def rewritten(file, change):
    """The file with its metadata changed by a function."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    packing = json.loads(header["__metadata__"][METADATA_KEY])
    change(packing, header)
    header["__metadata__"][METADATA_KEY] = json.dumps(packing)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda packing, _: packing.update(weights_file="../../evil"), "weights file"),
        (lambda packing, _: packing.update(weights_file="/etc/passwd"), "weights file"),
        (lambda packing, _: packing["tensors"][0].update(offset=10**9), "outside the weights file"),
        (lambda packing, _: packing["tensors"][0].update(matrix_shape=[6, -8]), "shape"),
        (lambda packing, _: packing["tensors"][0].update(permutation=[0, 0]), "shape"),
        (lambda packing, _: packing["tensors"][0].update(matrix_shape=[2**31, 2**31]), "shape"),
        (lambda packing, _: packing["tensors"][0].update(matrix_shape=[2] * 12), "shape"),
        (lambda packing, _: packing["tensors"][0].update(arrays=["indices", "codebook", "more"]), "lacks"),
        (lambda packing, _: packing.update(size_bytes=10**15), "rest"),
        (lambda packing, _: packing["tensors"].append(packing["tensors"][0]), "another weight"),
        (lambda packing, _: packing["tensors"][0]["storage"].update(bits=9), "bits"),
        (lambda packing, _: packing["tensors"][0]["storage"].update(type="pickled"), "pickled"),
        (lambda _, header: header.pop("0.indices"), "lacks"),
        (lambda packing, _: packing.clear(), "required field"),
    ],
)
def test_a_packed_file_that_contradicts_itself_is_refused(tmp_path, change, said):
    stored_weights(tmp_path, entropy_coding=False)
    rewritten(tmp_path / "packed.safetensors", change)
    with pytest.raises(BundleError, match=said):
        unpack(open_packed(tmp_path / "packed.safetensors"), tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda packing: packing["tensors"][0].update(matrix_shape=[6, 7]), "outside|rest"),
        (lambda packing: packing["tensors"][0]["storage"].update(bits=3), "codebook"),
        (lambda packing: packing["tensors"][0].update(storage={"type": "sparse", "n": 4, "m": 2}), "damaged"),
        (lambda packing: packing["tensors"][0].update(storage={"type": "pruned"}), "damaged"),
        (lambda packing: packing["tensors"][0].update(deflated={"indices": "uint8"}), "damaged"),
        (lambda packing: packing["tensors"][0].update(dtype="int8"), "damaged|rest"),
        (lambda packing: packing["tensors"][0].update(deflated={"indices": "object"}), "object"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, said):
    stored_weights(tmp_path, entropy_coding=False)
    rewritten(tmp_path / "packed.safetensors", lambda packing, _: change(packing))
    with pytest.raises(BundleError, match=said):
        unpack(open_packed(tmp_path / "packed.safetensors"), tmp_path / "again")


def test_arrays_that_lie_on_one_another_are_refused(tmp_path):
    """A small file could fill a disk with the same bytes, over and over."""
    stored_weights(tmp_path, entropy_coding=False)

    def overlap(_, header):
        header["0.codebook"]["data_offsets"] = [0, 16]

    rewritten(tmp_path / "packed.safetensors", overlap)
    with pytest.raises(BundleError, match="lie on one another"):
        open_packed(tmp_path / "packed.safetensors")


def test_a_mask_of_another_type_is_refused(tmp_path):
    stored_weights(tmp_path, entropy_coding=False)

    def signed(packing, header):
        packing["tensors"][0].update(storage={"type": "pruned"}, arrays=["mask", "values"])
        header["0.mask"] = {**header.pop("0.indices"), "dtype": "I8"}
        header["0.values"] = header.pop("0.codebook")

    rewritten(tmp_path / "packed.safetensors", signed)
    with pytest.raises(BundleError, match="damaged"):
        unpack(open_packed(tmp_path / "packed.safetensors"), tmp_path / "again")


def test_a_full_disk_is_told_before_it_is_filled(tmp_path, monkeypatch):
    stored_weights(tmp_path, entropy_coding=False)
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    opened = unpacked(tmp_path / "model.onnx", tmp_path / "packed.safetensors")
    with pytest.raises(OutzoomError, match="no room") as error, opened:
        pass
    assert "TMPDIR" in error.value.hint


def test_weights_never_replace_the_engine(tmp_path):
    stored_weights(tmp_path, entropy_coding=False)
    engine = tmp_path / "model.onnx"
    engine.write_bytes(b"the engine")
    rewritten(tmp_path / "packed.safetensors", lambda packing, _: packing.update(weights_file="model.onnx"))
    with pytest.raises(BundleError, match="replace the engine"), unpacked(engine, tmp_path / "packed.safetensors"):
        pass
    assert engine.read_bytes() == b"the engine"


def test_an_engine_stands_beside_its_weights_as_long_as_it_takes_to_load_it(tmp_path):
    weights = stored_weights(tmp_path, entropy_coding=True)
    (tmp_path / "model.onnx").write_bytes(b"the engine")
    with unpacked(tmp_path / "model.onnx", tmp_path / "packed.safetensors") as engine:
        assert engine.read_bytes() == b"the engine"
        assert (engine.parent / "model.onnx.data").read_bytes() == weights.read_bytes()
    assert not engine.parent.exists()


def test_compressed_bytes_that_swell_are_not_taken_into_memory(tmp_path):
    bomb = deflate(np.zeros(10**7, np.uint8))
    arrays = {"indices": bomb, "codebook": np.zeros((1, 2), np.float32)}
    with pytest.raises(ValueError, match="more than 64 bytes"):
        expand(tensor_of(Shared(1), "float32", (4, 4), deflated={"indices": "uint8"}), arrays)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_deflated_bytes_are_the_same_when_inflated(data):
    array = np.frombuffer(data, np.uint8)
    if not array.size:
        return
    tensor = tensor_of(Plain(), "int8", (1, array.size), deflated={"values": "uint8"})
    assert np.array_equal(expand(tensor, {"values": deflate(array)}).view(np.uint8).ravel(), array)
