"""`export-all` from checkpoint to bundle: the manifest says the truth, and nothing half-made stays."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from outzoom.benchmarks.readme import RESULTS
from outzoom.export import Plan, Recipe, Shapes, check_disk, estimate, open_checkpoint, read_recipe
from outzoom.export import build as build_all
from outzoom.export.estimate import BUSY_JOBS, component_weights, stage_cost
from outzoom.export.parity import reference_output, tensor_psnr_db
from outzoom.export.plan import all_stages
from outzoom.runtime import OutzoomError, UserError, open_bundle, open_manifest
from outzoom.runtime.files import sha256_of

COMPONENTS = ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
TARGETS = ["onnxruntime", "openvino-cpu"]
FULL_SIZE = json.loads((RESULTS / "full-size.json").read_text())
COMPRESSED = json.loads((RESULTS / "full-size-compression.json").read_text())["results"]
STRICT = Recipe("strict", "cannot be met", "float16", "float32", min_psnr_db=200)
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture
def plan(tiny_checkpoint, tmp_path, stage_cache):
    def plan(*targets, recipes=("fp32",), out="out", cache=stage_cache, **options):
        recipes = tuple(read_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in recipes)
        targets, shapes = targets or ("onnxruntime",), Shapes(((64, 64),))
        return Plan(open_checkpoint(tiny_checkpoint), targets, recipes, shapes, tmp_path / out, cache=cache, **options)

    return plan


@pytest.fixture
def make(plan):
    def make(*targets, on_event=lambda kind, text: None, **options):
        return list(build_all(plan(*targets, **options), on_event))

    return make


def names(folder):
    """What is in a folder of bundles, but the log and the stages' results."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (".cache", "build.log"))


def partials(*folders):
    return [file for folder in folders for file in folder.rglob(".partial*")]


@pytest.fixture(params=TARGETS)
def bundle(request, tiny_bundles):
    return open_manifest(tiny_bundles[f"{request.param}-fp32"])


def test_every_component_is_within_60_db_of_its_module(bundle):
    parities = {name: component.parity_psnr_db for name, component in bundle.manifest.components.items()}
    assert list(parities) == COMPONENTS
    assert all(parity is None or parity >= 60 for parity in parities.values()), parities  # None: equal


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_parity_holds_for_inputs_that_the_build_did_not_see(tiny_checkpoint, bundle, name):
    rng = np.random.default_rng(99)
    feeds = {
        spec.name: rng.integers(0, 500, spec.shape)
        if spec.dtype == "int64"
        else rng.standard_normal(spec.shape, np.float32)
        for spec in bundle.manifest.components[name].inputs
    }
    expected = reference_output(open_checkpoint(tiny_checkpoint), name, feeds)
    with open_bundle(bundle.path) as zoom:
        (output,) = zoom.inpainting.engine(name).run(feeds).values()
    assert tensor_psnr_db(expected, output) >= 60


def test_shapes_and_types_are_those_of_the_engines(bundle):
    import onnxruntime
    import openvino

    for name, component in bundle.manifest.components.items():
        if bundle.manifest.target == "onnxruntime":
            session = onnxruntime.InferenceSession(bundle.engine(name), providers=["CPUExecutionProvider"])
            found = [[(t.name, tuple(t.shape)) for t in ts] for ts in (session.get_inputs(), session.get_outputs())]
        else:
            model = openvino.Core().read_model(bundle.engine(name))
            found = [[(t.any_name, tuple(t.shape)) for t in ts] for ts in (model.inputs, model.outputs)]
        assert found == [[(s.name, s.shape) for s in specs] for specs in (component.inputs, component.outputs)]
    dtypes = {spec.name: spec.dtype for c in bundle.manifest.components.values() for spec in (*c.inputs, *c.outputs)}
    assert dtypes.pop("input_ids") == "int64"
    assert set(dtypes.values()) == {"float32"}


def test_every_file_is_listed_with_its_size_and_hash(bundle):
    on_disk = {p.relative_to(bundle.path).as_posix(): p for p in bundle.path.rglob("*") if p.is_file()}
    del on_disk["bundle.json"]
    assert {name: (e.size_bytes, e.sha256) for name, e in bundle.manifest.files.items()} == {
        name: (path.stat().st_size, sha256_of(path)) for name, path in on_disk.items()
    }


def test_the_manifest_says_where_it_came_from(tiny_checkpoint, bundle):
    manifest = bundle.manifest
    assert (manifest.source.name, manifest.source.sha256) == ("tiny", open_checkpoint(tiny_checkpoint).sha256)
    assert (manifest.recipe.name, manifest.recipe.weights, manifest.recipe.compute) == ("fp32", "float32", "float32")
    assert (manifest.sizes, manifest.batch, manifest.vae_scale_factor, manifest.max_tokens) == (((64, 64),), 1, 8, 77)
    assert manifest.latent_scale == 0.9
    assert manifest.scheduler["_class_name"] == "DDIMScheduler"
    for tool in ("outzoom", "torch", "diffusers", "onnx"):
        assert manifest.tools[tool] == version(tool)
    assert manifest.tools[manifest.target].startswith(version(manifest.target.removesuffix("-cpu")))


def test_the_parameters_are_counted(tiny_checkpoint, tiny_bundles):
    unet = open_manifest(tiny_bundles["onnxruntime-fp32"]).manifest.components["unet"]
    trained = sum(math.prod(tensor.shape) for tensor in open_checkpoint(tiny_checkpoint).weights("unet").values())
    # the graph has a few constants of its own, and keeps equal tensors (norms of random weights) once
    assert unet.parameters == pytest.approx(trained, rel=0.01)


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_onnx_of_a_component_passes_onnxs_checker(tiny_bundles, name):
    file = tiny_bundles["onnxruntime-fp32"] / name / "model.onnx"
    onnx.checker.check_model(file, full_check=True)
    assert not any(node.metadata_props for node in onnx.load(file, load_external_data=False).graph.node)


def weight_bytes(bundle):
    return sum(e.size_bytes for name, e in bundle.manifest.files.items() if name.endswith((".data", ".bin")))


def test_fp16_halves_the_weights_and_keeps_its_promise(make, tiny_bundles):
    for bundle in make(*TARGETS, recipes=["fp16"]):
        fp32 = open_manifest(tiny_bundles[f"{bundle.manifest.target}-fp32"])
        assert 0.49 < weight_bytes(bundle) / weight_bytes(fp32) < 0.55  # biases and norms stay in float32
        parities = [component.parity_psnr_db for component in bundle.manifest.components.values()]
        assert all(30 <= parity < 100 for parity in parities), parities


def test_a_recipe_that_cannot_be_met_stops_with_the_component_and_leaves_nothing(make, tmp_path):
    with pytest.raises(OutzoomError, match=r"text_encoder for onnxruntime .*'strict' .* dB PSNR; .* 200") as error:
        make(recipes=[STRICT])
    assert "min_psnr_db" in error.value.hint
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("kind", "part"), [("start", "write ONNX"), ("start", "compile"), ("done", "vae_decoder: compile")]
)
def test_ctrl_c_leaves_nothing_and_the_next_build_goes_on(make, tmp_path, stage_cache, kind, part):
    def interrupt(happened, text):
        if happened == kind and part in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(on_event=interrupt)
    assert names(tmp_path / "out") == []
    assert partials(tmp_path, stage_cache) == []
    make()
    assert names(tmp_path / "out") == ["onnxruntime-fp32"]


def test_an_interrupted_build_goes_on_where_it_stopped(make, tmp_path):
    def interrupt(kind, text):
        if kind == "done" and "unet: compile" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(on_event=interrupt, recipes=["fp16"])
    events = []
    make(on_event=lambda *event: events.append(event), recipes=["fp16"])
    (reason,) = [text for kind, text in events if kind == "skip" and text.startswith("unet: compile")]
    assert "same weights, shapes, recipe and tools" in reason
    assert not [text for kind, text in events if kind == "start" and text.startswith("unet:")]


def test_a_bundle_that_is_up_to_date_is_left_alone(make, tmp_path):
    (first,) = make()
    before = (first.path / "bundle.json").stat()
    events = []
    (second,) = make(on_event=lambda *event: events.append(event))
    assert second.manifest == first.manifest
    assert (first.path / "bundle.json").stat() == before
    assert {kind for kind, _ in events} == {"skip"}
    assert "onnxruntime-fp32: up to date" in events[-1][1]


def test_another_recipe_of_the_same_name_is_another_bundle(make):
    (first,) = make(recipes=[Recipe("mine", "", "float32", "float32", 60)])
    (second,) = make(recipes=[Recipe("mine", "", "float16", "float32", 40)])
    assert second.manifest.build.key != first.manifest.build.key
    assert second.size_bytes < 0.6 * first.size_bytes


def test_the_build_log_and_the_manifest_say_what_each_stage_took(make, tmp_path):
    (bundle,) = make()
    stages = {stage.name: stage for stage in bundle.manifest.build.stages}
    for component in COMPONENTS:
        for what in (
            "export the graph",
            "run the checkpoint's module",
            "write ONNX, fp32",
            "compile for onnxruntime, fp32",
        ):
            stage = stages[f"{component}: {what}"]
            assert stage.seconds >= 0
            assert 50e6 < stage.peak_memory_bytes < 2e9  # an interpreter with numpy takes 30 MB
            assert stage.cpu_seconds is not None
            assert 0 < stage.cpu_seconds < 600
    log = (tmp_path / "out" / "build.log").read_text()
    assert re.search(r"unet: compile for onnxruntime, fp32: \d+\.\d s, peak memory \d+ MiB", log)
    assert "onnxruntime-fp32: written" in log


def test_large_results_of_stages_are_cleared_away_and_small_ones_stay(make, tmp_path):
    make("onnxruntime", "openvino-cpu", cache=tmp_path / "cache")
    left = {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert left == {"hashes.json", "trace_component", "run_module"}


def test_engines_of_another_build_stay_in_a_shared_cache_for_a_day(make, tmp_path):
    cache = tmp_path / "cache"
    for name in ("compile_engine-fresh", "write_onnx-stale"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "write_onnx-stale", (0, 0))
    make(cache=cache)
    assert [path.name for path in cache.glob("compile_engine-*")] == ["compile_engine-fresh"]
    assert not list(cache.glob("write_onnx-*"))


def test_a_bundle_that_was_there_survives_a_rebuild_that_fails(make, tmp_path, tiny_bundles):
    kept = Path(shutil.copytree(tiny_bundles["onnxruntime-fp32"], tmp_path / "out" / "onnxruntime-strict"))
    with pytest.raises(OutzoomError):
        make(recipes=[STRICT])
    assert names(tmp_path / "out") == [kept.name]
    open_manifest(kept)


def test_a_rebuild_replaces_the_bundle_whole_and_clears_away_what_a_killed_one_left(make, tmp_path):
    (old,) = make()
    (tmp_path / "out" / ".partial-1-0123abcd-onnxruntime-fp32").mkdir()
    (old.path / "vae_decoder" / "stale").write_text("from another version")
    (new,) = make()
    assert new.path == old.path
    open_manifest(new.path)
    assert names(tmp_path / "out") == ["onnxruntime-fp32"]


def test_a_folder_that_is_no_bundle_is_not_replaced(make, tmp_path):
    thesis = tmp_path / "out" / "onnxruntime-fp32" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(UserError, match="outzoom did not make it"):
        make()
    assert thesis.read_text() == "years of work"


def test_an_output_that_is_a_file_is_refused_before_the_work(make, tmp_path):
    (tmp_path / "out").write_text("a file")
    events = []
    with pytest.raises(UserError, match="cannot write"):
        make(on_event=lambda *event: events.append(event))
    assert events == []


@pytest.mark.parametrize("again", [False, True])
def test_every_stage_is_reported_once(plan, again):
    planned = plan(*TARGETS, recipes=["fp32", "fp16"])
    for _ in range(1 + again):
        events = []
        list(build_all(planned, lambda *event, events=events: events.append(event)))
    assert planned.stage_count == 4 * (2 + 2 + 4) + 4  # trace and module; ONNX by recipe; engines; bundles
    assert sum(kind in ("done", "skip") for kind, _ in events) == planned.stage_count


def test_a_caller_that_takes_only_the_first_bundle_leaves_nothing_half_made(plan, tmp_path):
    bundles = build_all(plan(*TARGETS))
    next(bundles)
    bundles.close()
    assert names(tmp_path / "out") == ["onnxruntime-fp32"]


@pytest.mark.parametrize(
    ("targets", "recipes", "message"),
    [
        (["onxruntime"], ["fp32"], "no target 'onxruntime'"),
        (["onnxruntime"] * 2, ["fp32"], "target 'onnxruntime' is asked for twice"),
        (["onnxruntime"], ["fp32", "fp32"], "recipe 'fp32' is asked for twice"),
    ],
)
def test_targets_and_recipes_are_checked_before_the_work(make, tmp_path, targets, recipes, message):
    with pytest.raises(UserError, match=message):
        make(*targets, recipes=recipes)
    assert not (tmp_path / "out").exists()


def export_all(checkpoint, out):
    return [sys.executable, "-m", "outzoom", "export-all", str(checkpoint), "--out", str(out), "--json"]


def in_a_small_filesystem(folder, size, command):
    """The finished command, run with `folder` on a disk of that size; it prints what is left half-made there."""
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode:
        pytest.skip("user namespaces are not available, so no small filesystem can be made")
    script = f'{mount} && "$@"; code=$?; find {folder} -name ".partial*" -o -name bundle.json; exit $code'
    command = ["unshare", "-Urm", "sh", "-c", script, "-", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@posix_only
def test_sigint_in_the_middle_of_export_all_leaves_nothing(tiny_checkpoint, tmp_path):
    child = subprocess.Popen(
        export_all(tiny_checkpoint, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".cache/.partial-*-*_*-*")):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 1, err
    assert "interrupted" in json.loads(out)["error"]["message"]
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert names(tmp_path) == []
    assert partials(tmp_path) == []


@posix_only
def test_too_little_disk_is_refused_before_the_work(tiny_checkpoint, tmp_path):
    done = in_a_small_filesystem(tmp_path, "1m", export_all(tiny_checkpoint, tmp_path))
    assert done.returncode == 2, done.stderr
    (result,) = done.stdout.splitlines()
    assert "the build needs about" in json.loads(result)["error"]["message"]


@posix_only
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_half_made(tiny_checkpoint, tmp_path):
    script = f"""
from pathlib import Path
from outzoom.export import Plan, Shapes, build, open_checkpoint, read_recipe
if __name__ == "__main__":
    checkpoint, out = open_checkpoint({str(tiny_checkpoint)!r}), Path({str(tmp_path)!r})
    list(build(Plan(checkpoint, ("onnxruntime",), (read_recipe("fp32"),), Shapes(((64, 64),)), out)))
"""
    done = in_a_small_filesystem(tmp_path, "3m", [sys.executable, "-c", script])
    assert done.returncode == 1
    assert "OutzoomError: the disk is full" in done.stderr
    assert done.stdout == ""


def test_an_estimate_says_what_is_still_to_be_done(plan, make):
    planned = plan(*TARGETS, recipes=["fp16"], out="estimated")
    before = estimate(planned)
    assert len(before.stages) >= 12  # ONNX and two engines of each component; traces may be there from other tests
    list(build_all(planned))
    bundles = sum(open_manifest(bundle.path).size_bytes for bundle in planned.bundles)
    assert before.kept_bytes == pytest.approx(bundles, rel=0.5)  # of a tiny model, graphs are much
    assert before.disk_bytes > before.kept_bytes
    after = estimate(planned)
    assert (after.stages, after.seconds, after.disk_bytes, after.peak_memory_bytes) == ((), 0, 0, 0)


def write_hole(file, shapes, dtype, rng):
    """A safetensors file with its whole header, and a hole in the place of its data."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A plan of what benchmarks/results/full-size.json is about, made from headers alone."""
    import make_checkpoint

    folder = tmp_path_factory.mktemp("full-size")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_checkpoint, "write_safetensors", write_hole)
        patch.setattr(Plan, "source_sha256", "0" * 64)  # of 2.6 GB of zeros
        make_checkpoint.write_checkpoint("sd2-inpainting", "float16", folder)
        mixed = read_recipe("mixed")
        one_sample = msgspec.structs.replace(mixed, mixed=msgspec.structs.replace(mixed.mixed, samples=1))
        recipes = (*map(read_recipe, ("fp16", "int8", "int4", "kmeans4", "pruned", "sparse24", "narrow")), one_sample)
        yield Plan(open_checkpoint(folder), tuple(TARGETS), recipes, Shapes(((512, 512),)), folder / "out", jobs=2)


@pytest.fixture(scope="module")
def full_size_costs(full_size):
    """What each of its stages is expected to take, by name."""
    weights = component_weights(full_size.checkpoint)
    found = {s.key: s for bundle in full_size.bundles for e in bundle.engines.values() for s in all_stages(e)}
    return {stage.name: stage_cost(stage, weights, full_size.shapes) for stage in found.values()}


@pytest.mark.parametrize(("part", "count"), [("onnx_export", 8), ("build_openvino-cpu", 16), ("build_onnxruntime", 16)])
def test_the_estimate_of_each_stage_at_full_size_is_near_what_was_measured(full_size_costs, part, count):
    measured = FULL_SIZE[part]["stages"]
    assert len(measured) == count
    for name, (seconds, peak_memory_bytes) in measured.items():
        cost = full_size_costs[name]
        assert 1 / 2 <= cost.seconds / seconds <= 2, name
        assert 1 / 1.5 <= cost.peak_memory_bytes / peak_memory_bytes <= 1.5, name


@pytest.mark.parametrize("target", TARGETS)
def test_the_estimate_of_a_build_at_full_size_is_near_what_was_measured(full_size, target):
    expected, measured = estimate(replace(full_size, targets=(target,), recipes=full_size.recipes[:1])), FULL_SIZE
    assert expected.seconds == pytest.approx(measured[f"build_{target}"]["wall_seconds"], rel=0.25)
    assert expected.kept_bytes == pytest.approx(measured[f"build_{target}"]["size_bytes"], rel=0.1)


def test_the_estimate_of_a_calibration_counts_the_runs_of_its_zooms(full_size, full_size_costs):
    settings = full_size.recipes[1].calibration
    runs = len(settings.prompts) * settings.keyframes * settings.steps * 2  # with and without the prompt
    measured = FULL_SIZE["zoom_onnxruntime"]["unet_call_seconds"]["median"]  # with both cores to itself
    unet, zooms = (full_size_costs[name] for name in ("unet: measure activations, int8", "zoom for calibration"))
    assert 1 / 1.5 <= unet.seconds / BUSY_JOBS / runs / measured <= 1.5
    assert zooms.seconds > unet.seconds
    assert 1.7 * 2**30 < zooms.peak_memory_bytes < 3 * 2**30  # a segment of one engine at a time; 1.7 GiB were measured


def test_the_estimate_of_a_mixed_recipe_at_full_size_is_near_what_was_measured(full_size_costs):
    measured = COMPRESSED["outzoom-openvino-cpu-mixed"]["stages"]
    for component, step in itertools.product(COMPONENTS, ("try choices", "measure the layers' sensitivity")):
        name = f"{component}: {step}, mixed"
        seconds, peak_memory_bytes = measured[name]
        assert 1 / 2 <= full_size_costs[name].seconds / seconds <= 2, name
        assert 1 / 1.7 <= full_size_costs[name].peak_memory_bytes / peak_memory_bytes <= 1.7, name


@pytest.mark.parametrize("name", [name for name in COMPRESSED if name.startswith("outzoom-openvino-cpu")])
def test_the_estimate_of_compressing_at_full_size_is_near_what_was_measured(full_size_costs, name):
    stage = f"unet: write ONNX, {name.removeprefix('outzoom-openvino-cpu-')}"
    seconds, _ = COMPRESSED[name]["stages"][stage]
    assert 1 / 2 <= full_size_costs[stage].seconds / seconds <= 2


def test_every_weight_of_the_vae_is_the_encoders_or_the_decoders(tiny_checkpoint):
    checkpoint = open_checkpoint(tiny_checkpoint)
    weights, stored = component_weights(checkpoint), checkpoint.weights("vae").values()
    halves = [weights["vae_encoder"], weights["vae_decoder"]]
    assert min(half.tensors for half in halves) > 0
    assert sum(half.tensors for half in halves) == len(stored)
    assert sum(half.parameters for half in halves) == sum(math.prod(tensor.shape) for tensor in stored)


def test_more_sizes_and_a_batch_cost_more_where_they_are_run(plan):
    planned = plan(recipes=["fp16"])
    weights = component_weights(planned.checkpoint)
    engines = planned.bundles[0].engines.values()
    stages = {stage.name: stage for engine in engines for stage in all_stages(engine)}
    one, two, pair = Shapes(((64, 64),)), Shapes(((64, 64), (128, 64))), Shapes(((64, 64),), batch=2)

    def costs(name):
        return [stage_cost(stages[name], weights, shapes) for shapes in (one, two, pair)]

    for name in ("unet: run the checkpoint's module", "unet: compile for onnxruntime, fp16"):
        alone, sizes, batch = costs(name)
        assert sizes.seconds > 2 * alone.seconds and batch.seconds > alone.seconds
        assert sizes.peak_memory_bytes == batch.peak_memory_bytes > alone.peak_memory_bytes  # both: twice the pixels
    for name in ("unet: export the graph", "unet: write ONNX, fp16", "text_encoder: run the checkpoint's module"):
        assert len(set(costs(name))) == 1


def test_more_than_is_free_is_refused(plan):
    with pytest.raises(UserError, match=r"needs about 1000000000\.00 GB .* GB are free"):
        check_disk(plan(), 10**18)


def test_a_failed_write_of_openvino_is_an_os_error(tiny_bundles, tmp_path):
    from outzoom.runtime.backends import backend_for

    (tmp_path / "openvino_model.bin").mkdir()
    with pytest.raises(OSError, match=r"OpenVINO can't write .*openvino_model"):
        backend_for("openvino-cpu").compile(tiny_bundles["onnxruntime-fp32"] / "text_encoder" / "model.onnx", tmp_path)
