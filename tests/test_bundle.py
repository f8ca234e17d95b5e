"""Each way a bundle can be broken has its clear error."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outzoom.runtime import BundleError, Motion, OutzoomError, Painting, open_bundle, open_manifest
from outzoom.runtime.bundle import MAX_MANIFEST_BYTES, SCHEMA_VERSION, describe_files

UNET = "unet/model.onnx"


@pytest.fixture
def bundle(tiny_bundles, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_bundles["onnxruntime-fp32"], tmp_path / "bundle"))


def manifest_of(bundle):
    return json.loads((bundle / "bundle.json").read_bytes())


def write(bundle, manifest):
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def rehash(bundle):
    """Make the manifest list what is there, as a tamperer who knows the format would."""
    write(bundle, {**manifest_of(bundle), "files": msgspec.to_builtins(describe_files(bundle))})


def assert_refused(bundle, *words, use=open_manifest):
    with pytest.raises(BundleError) as error:
        use(bundle)
    for word in words:
        assert word in str(error.value)
    assert error.value.hint


def zoom_a_little(bundle):
    with open_bundle(bundle) as zoom:
        picture = np.zeros((*zoom.size[::-1], 3), np.uint8)
        return list(zoom.frames(picture, "a reef", Motion(seconds=0.1), Painting(steps=1, guidance=1)))


def test_a_good_bundle_opens_and_tells_the_bytes_it_hashed(bundle):
    hashed = []
    opened = open_manifest(bundle, progress=hashed.append)
    assert sum(hashed) == opened.size_bytes == sum(p.stat().st_size for p in bundle.glob("*/*"))
    assert opened.engine("unet") == bundle / UNET


def test_a_file_that_is_not_listed_is_not_given_out(bundle):
    opened = open_manifest(bundle)
    with pytest.raises(BundleError, match="lists no file 'secret'"):
        opened.file("secret")


def test_what_is_not_there_is_no_bundle(tmp_path):
    assert_refused(tmp_path / "nowhere", "there is no bundle", "nowhere")


def test_a_folder_or_file_without_a_manifest_is_not_a_bundle(bundle, tmp_path):
    (tmp_path / "folder").mkdir()
    assert_refused(tmp_path / "folder", "is not a bundle", "bundle.json")
    assert_refused(bundle / "bundle.json", "is not a bundle")


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    assert_refused(tmp_path / ("a" * 5000), "aaaa")


def nested(depth, opening, closing):
    return opening * depth + b"1" + closing * depth


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", ["damaged"], id="empty"),
        pytest.param(b"zoom", ["damaged", "JSON"], id="not JSON"),
        pytest.param(b'{"schema_version": 3', ["damaged", "truncated"], id="cut short"),
        pytest.param(b'{"schema_version": 3, "target": "\xff"}', ["damaged", "utf-8"], id="not UTF-8"),
        pytest.param(b"[]", ["damaged", "Expected `object`"], id="a list"),
        pytest.param(b"{}", ["damaged", "`schema_version`"], id="no version"),
        pytest.param(b'{"schema_version": "2"}', ["damaged", "Expected `int`"], id="version is text"),
        pytest.param(b'{"schema_version": ' + b"9" * 5000 + b"}", ["damaged"], id="version of 5000 digits"),
        pytest.param(b'{"schema_version": 3, "x": ' + nested(99_999, b"[", b"]") + b"}", ["recursion"], id="deep list"),
        pytest.param(
            b'{"schema_version": 3, "scheduler": ' + nested(99_999, b'{"a":', b"}") + b"}", ["recursion"], id="deep map"
        ),
        pytest.param(b" " * (MAX_MANIFEST_BYTES + 1), [str(MAX_MANIFEST_BYTES)], id="huge"),
    ],
)
def test_a_damaged_manifest_says_so(bundle, data, words):
    (bundle / "bundle.json").write_bytes(data)
    assert_refused(bundle, *words)


@pytest.mark.parametrize(("step", "age"), [(1, "newer"), (-1, "older")])
def test_another_schema_is_named(bundle, step, age):
    # whatever else another version holds is not looked at
    write(bundle, {"schema_version": SCHEMA_VERSION + step, "components": "changed"})
    assert_refused(bundle, "schema version", age, str(SCHEMA_VERSION + step))


@pytest.mark.parametrize("key", ["target", "recipe", "source", "sizes", "scheduler", "components", "files", "build"])
def test_a_missing_key_is_named(bundle, key):
    manifest = manifest_of(bundle)
    del manifest[key]
    write(bundle, manifest)
    assert_refused(bundle, "damaged", f"`{key}`")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": [["64", 64]]}, ["Expected `int`", "$.sizes"]),
        ({"sizes": [[64.5, 64]]}, ["Expected `int`", "$.sizes"]),
        ({"sizes": [[True, 64]]}, ["Expected `int`", "$.sizes"]),
        ({"sizes": [[64]]}, ["length 2", "$.sizes"]),
        ({"sizes": []}, ["0 sizes"]),
        ({"sizes": [[64, 64]] * 65}, ["65 sizes"]),
        ({"batch": 3}, ["batch 3"]),
        ({"batch": 2}, ["has the shape", "(2, 9, 8, 8)"]),
        ({"components": []}, ["Expected `object`", "$.components"]),
        ({"files": {"a": {"size_bytes": "1", "sha256": ""}}}, ["Expected `int`", "$.files"]),
        ({"sizes": [[0, 64]]}, ["side 0"]),
        ({"sizes": [[64, -64]]}, ["side -64"]),
        ({"sizes": [[64, 65]]}, ["side 65", "multiple of 8"]),
        ({"sizes": [[2**40, 64]]}, ["side", "up to 8192"]),
        ({"sizes": [[128, 64]]}, ["has the shape", "(1, 9, 8, 16)"]),
        ({"sizes": [[64, 64], [128, 64]]}, ["has the shape", "(1, 9, 8, 16)"]),
        ({"vae_scale_factor": 0}, ["vae_scale_factor 0"]),
        ({"vae_scale_factor": 2**31}, ["vae_scale_factor"]),
        ({"vae_scale_factor": 16}, ["has the shape"]),
        ({"latent_scale": 0}, ["latent_scale 0"]),
        ({"latent_scale": -1}, ["latent_scale -1"]),
        ({"latent_scale": 1e-300}, ["latent_scale 1e-300"]),
        ({"latent_scale": float("nan")}, ["damaged"]),
        ({"latent_scale": float("inf")}, ["damaged"]),
        ({"max_tokens": 1}, ["max_tokens 1"]),
        ({"max_tokens": 10**9}, ["max_tokens"]),
        ({"max_tokens": 50}, ["input_ids", "(1, 77)", "(1, 50)"]),
        ({"components": {}}, ["components missing: text_encoder, unet, vae_encoder, vae_decoder"]),
        ({"files": {}}, ["is not a listed file"]),
        ({"target": "\x1b[2Jfast"}, ["can't be printed", r"\x1b"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_value_is_named(bundle, changes, words):
    write(bundle, {**manifest_of(bundle), **changes})
    assert_refused(bundle, *words)


@pytest.mark.parametrize(
    "shape", [[], [1, 4, 8], [1, 4, 16, 8], [1, 4, 0, 8], [1, 4, -8, 8], [1, 4, 2**30, 2**30], [1] * 100_000],
    ids=["none", "rank", "other size", "zero", "negative", "terabytes", "100000 axes"],
)  # fmt: skip
def test_a_latent_shape_that_does_not_fit_the_picture_is_refused_before_memory_is_taken(bundle, shape):
    manifest = manifest_of(bundle)
    manifest["components"]["vae_decoder"]["inputs"][0]["shape"] = shape
    write(bundle, manifest)
    assert_refused(bundle, "vae_decoder", "'latent_sample' has the shape")


def test_a_missing_component_or_input_is_named(bundle):
    manifest = manifest_of(bundle)
    write(bundle, {**manifest, "components": {k: v for k, v in manifest["components"].items() if k != "unet"}})
    assert_refused(bundle, "components missing: unet")
    manifest["components"]["vae_decoder"]["inputs"] = []
    write(bundle, manifest)
    assert_refused(bundle, "vae_decoder/model.onnx", "no input 'latent_sample'")


@pytest.fixture
def hoisted(hoisted_bundles, tmp_path) -> Path:
    """A copy of a bundle with the UNet in three parts, to break."""
    return Path(shutil.copytree(hoisted_bundles["onnxruntime-fp32"], tmp_path / "hoisted"))


def test_a_hoisted_unet_takes_what_its_parts_make(hoisted):
    components = open_manifest(hoisted).manifest.components
    made = [spec for part in ("unet_text", "unet_time") for spec in components[part].outputs]
    assert {spec.name for spec in components["unet"].inputs} == {"sample", *(spec.name for spec in made)}


@pytest.mark.parametrize("part", ["unet_text", "unet_time"])
def test_one_part_of_a_hoisted_unet_without_the_other_is_refused(hoisted, part):
    manifest = manifest_of(hoisted)
    del manifest["components"][part]
    write(hoisted, manifest)
    assert_refused(hoisted, "come together", f"there is no {part}")


def change_shape(components):
    components["unet_text"]["outputs"][0]["shape"][1] += 1


def change_dtype(components):
    components["unet_time"]["outputs"][0]["dtype"] = "float16"


def drop_output(components):
    del components["unet_text"]["outputs"][0]


def drop_all_outputs(components):
    components["unet_text"]["outputs"] = components["unet_time"]["outputs"] = []


def drop_input(components):
    components["unet"]["inputs"] = [spec for spec in components["unet"]["inputs"] if spec["name"] == "sample"]


def take_the_prompt_too(components):
    components["unet"]["inputs"] += components["unet_text"]["inputs"]


def make_twice(components):
    components["unet_time"]["outputs"].append(components["unet_text"]["outputs"][0])


def take_twice(components):
    components["unet"]["inputs"].append(components["unet"]["inputs"][1])


def need_another_input(components):
    components["unet_text"]["inputs"].append(components["unet_time"]["inputs"][0])


def need_no_input(components):
    components["unet_time"]["inputs"] = []


def unlist_engine(components):
    components["unet_text"]["engine"] = "../unet_text/model.onnx"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_shape, ["unet does not take", "attn2.to_k"]),
        (change_dtype, ["unet does not take", "float16"]),
        (drop_output, ["unet takes what unet_text and unet_time do not make", "attn2.to_k"]),
        (drop_all_outputs, ["do not make"]),
        (drop_input, ["unet does not take"]),
        (take_the_prompt_too, ["do not make", "encoder_hidden_states"]),
        (make_twice, ["is 2 times in what unet_text and unet_time make"]),
        (take_twice, ["is 2 times in what unet takes"]),
        (need_another_input, ["unet_text must have the one input 'encoder_hidden_states'"]),
        (need_no_input, ["unet_time must have the one input 'timestep'"]),
        (unlist_engine, ["engine of unet_text", "not a listed file"]),
    ],
)
def test_parts_of_a_hoisted_unet_that_do_not_fit_are_refused(hoisted, damage, words):
    manifest = manifest_of(hoisted)
    damage(manifest["components"])
    write(hoisted, manifest)
    assert_refused(hoisted, *words)


def test_a_hoisted_part_that_is_not_what_the_manifest_says_is_a_damaged_bundle(hoisted):
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(hoisted / "unet_text" / name, hoisted / "unet_time" / name)
    rehash(hoisted)
    assert_refused(hoisted, "engine of unet_time does not run as the manifest says", use=zoom_a_little)


def test_an_engine_that_is_not_listed_is_refused(bundle):
    manifest = manifest_of(bundle)
    manifest["components"]["unet"]["engine"] = "unet/other.onnx"
    write(bundle, manifest)
    assert_refused(bundle, "engine of unet", "unet/other.onnx", "not a listed file")


def test_a_truncated_file_is_named(bundle):
    file = bundle / "unet/model.onnx.data"
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(bundle, "model.onnx.data", "truncated", str(file.stat().st_size))


def test_a_file_that_grew_is_named(bundle):
    with (bundle / UNET).open("ab") as file:
        file.write(b"more")
    assert_refused(bundle, UNET, "changed")


def test_a_tampered_file_of_the_same_size_is_named(bundle):
    data = bytearray((bundle / "unet/model.onnx.data").read_bytes())
    data[1000] ^= 1
    (bundle / "unet/model.onnx.data").write_bytes(data)
    assert_refused(bundle, "model.onnx.data", "SHA-256")
    open_manifest(bundle, verify=False)  # sizes are still right


@pytest.mark.parametrize("name", [UNET, "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    assert_refused(bundle, "incomplete", name, "missing")


@pytest.mark.parametrize("name", ["", ".", "unet"])
def test_a_folder_is_not_a_file(bundle, name):
    manifest = manifest_of(bundle)
    manifest["files"][name] = manifest["files"][UNET]
    write(bundle, manifest)
    assert_refused(bundle, "incomplete", f"'{name}'")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "unet/../../x", "unet/..", "c:/x", "c:x", r"..\x", r"unet\x", "~/../../x"],
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle, tmp_path, name):
    (tmp_path / "x").write_text("secret")
    manifest = manifest_of(bundle)
    manifest["files"][name] = {"size_bytes": 6, "sha256": "0" * 64}
    write(bundle, manifest)
    assert_refused(bundle, "outside itself", name)


def test_a_name_with_control_characters_is_refused_and_not_printed_raw(bundle):
    manifest = manifest_of(bundle)
    manifest["files"]["unet/\0x"] = manifest["files"][UNET]
    write(bundle, manifest)
    assert_refused(bundle, "can't be printed", r"\x00")


def test_a_link_that_leads_out_or_round_in_a_circle_is_refused(bundle, tmp_path):
    (tmp_path / "model.onnx").write_bytes((bundle / UNET).read_bytes())
    (bundle / UNET).unlink()
    (bundle / UNET).symlink_to("../../model.onnx")
    assert_refused(bundle, "outside itself", UNET)
    (bundle / UNET).unlink()
    (bundle / UNET).symlink_to("model.onnx")
    assert_refused(bundle, UNET)


def test_a_linked_folder_outside_is_refused(bundle, tiny_bundles):
    shutil.rmtree(bundle / "tokenizer")
    (bundle / "tokenizer").symlink_to(tiny_bundles["onnxruntime-fp32"] / "tokenizer")
    assert_refused(bundle, "outside itself", "tokenizer/")


def test_a_tokenizer_that_is_not_listed_is_not_read(bundle):
    manifest = manifest_of(bundle)
    manifest["files"] = {k: v for k, v in manifest["files"].items() if not k.startswith("tokenizer/")}
    write(bundle, manifest)
    assert_refused(bundle, "lists no file in 'tokenizer'")


def test_a_file_smuggled_in_beside_an_engine_is_refused_and_one_at_the_top_is_not(bundle):
    (bundle / "zoom.mp4").write_bytes(b"a video that somebody wrote here")
    open_manifest(bundle)
    (bundle / "tokenizer/special_tokens_map.json").write_text('{"pad_token": "!"}')
    assert_refused(bundle, "does not list", "tokenizer/special_tokens_map.json")


def test_of_a_file_listed_twice_the_last_entry_counts(bundle):
    text = (bundle / "bundle.json").read_text()
    wrong = f'"files": {{"{UNET}": {{"size_bytes": 1, "sha256": "{"0" * 64}"}},'
    (bundle / "bundle.json").write_text(text.replace('"files": {', wrong))
    open_manifest(bundle)
    (bundle / "bundle.json").write_text(text.rstrip()[:-1] + ',"files": {}}')
    assert_refused(bundle, "is not a listed file")


@pytest.mark.parametrize("kept_fraction", [0, 0.4, 0.99])
@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("onnxruntime", "unet/model.onnx"),
        ("onnxruntime", "unet/model.onnx.data"),
        ("openvino-cpu", "unet/openvino_model.xml"),
        ("openvino-cpu", "unet/openvino_model.bin"),
    ],
)
def test_a_truncated_engine_of_the_right_hash_is_refused_by_its_backend(
    tiny_bundles, tmp_path, target, name, kept_fraction
):
    bundle = Path(shutil.copytree(tiny_bundles[f"{target}-fp32"], tmp_path / "bundle"))
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: int(len(data) * kept_fraction)])
    rehash(bundle)

    def load_unet(path):
        open_bundle(path).inpainting.engine("unet")

    assert_refused(bundle, "unet", "can't", use=load_unet)


def test_an_engine_whose_weights_lie_outside_is_refused_by_its_backend(bundle, tmp_path):
    import onnx

    model = onnx.load(bundle / UNET, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../weights"
    onnx.save(model, bundle / UNET)
    (bundle / "unet/model.onnx.data").rename(tmp_path / "weights")
    rehash(bundle)
    assert_refused(bundle, "can't load", use=lambda path: open_bundle(path).inpainting.engine("unet"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"pad_token": "<|nothing|>"}'),
    ],
    ids=["empty", "no model", "deep", "not UTF-8", "config is a list", "deep config", "unknown padding"],
)
def test_a_damaged_tokenizer_is_refused(bundle, name, data):
    (bundle / "tokenizer" / name).write_bytes(data)
    rehash(bundle)
    assert_refused(bundle, "the tokenizer in", use=open_bundle)


def test_a_tokenizer_without_its_files_is_refused(bundle):
    (bundle / "tokenizer/tokenizer.json").unlink()
    rehash(bundle)
    assert_refused(bundle, "the tokenizer in", "can't be read", use=open_bundle)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "coreml"}, ["no target 'coreml'", "onnxruntime"]),
        ({"scheduler": {"beta_end": "x"}}, ["beta_end"]),
    ],
    ids=["target", "scheduler"],
)
def test_a_target_or_scheduler_that_this_outzoom_lacks_is_named_when_it_is_used(bundle, changes, words):
    write(bundle, {**manifest_of(bundle), **changes})
    with pytest.raises(OutzoomError) as error:
        zoom_a_little(bundle)
    assert all(word in str(error.value) for word in words)
