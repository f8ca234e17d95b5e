"""The benchmark on real, tiny bundles: what it measures, what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from PIL import Image

from outzoom.benchmarks import (
    BenchSettings,
    Results,
    measure_bundle,
    read_results,
    render_report,
    results_as_dict,
    run_bench,
)
from outzoom.benchmarks.bench import reference_of, unique_names
from outzoom.benchmarks.machine import busy_warning, describe_machine
from outzoom.benchmarks.measure import with_executed
from outzoom.benchmarks.report_parts import digits, similarity
from outzoom.benchmarks.results import Executed, Latency
from outzoom.runtime import (
    Inpainting,
    MissingPackageError,
    OutzoomError,
    UserError,
    load_image,
    open_manifest,
    save_png,
)

HOSTILE = "<img src=x onerror=alert(1)> $\\frac{"
LONG_PROMPT = "a meadow " * 60
PICTURE = np.random.default_rng(7).integers(0, 256, (80, 96, 3), np.uint8)
STEPS, EVERY, RUNS = 2, 4, 3
PARTS = ["UNet, hoisted: once per prompt", "UNet, hoisted: once per timestep"]


def quick(image: Path, **changes: Any) -> BenchSettings:
    """Nine frames, of which the last is the second painted keyframe."""
    values = {"seconds": 0.3, "keyframe_every": EVERY, "steps": STEPS, "runs": RUNS, "warm_ups": 1, **changes}
    return BenchSettings(image=image, **values)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    save_png(PICTURE, path)
    return path


class Outcome:
    """A benchmark of some bundles."""

    def __init__(self, bundles: list[Path], image: Path, folder: Path) -> None:
        self.bundles = bundles
        self.settings = quick(image, prompt=LONG_PROMPT)
        self.out = folder / "out"
        self.progress: list[str] = []
        self.results = run_bench(self.bundles, self.out, self.settings, self.progress.append)
        self.page = (self.out / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def outcome(tiny_bundles: dict[str, Path], image: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A benchmark of three bundles: both targets, and a copy of the first under a hostile name."""
    folder = tmp_path_factory.mktemp("bench")
    copy = shutil.copytree(tiny_bundles["onnxruntime-fp32"], folder / HOSTILE)
    return Outcome([tiny_bundles["onnxruntime-fp32"], tiny_bundles["openvino-cpu-fp32"], copy], image, folder)


@pytest.fixture(scope="module")
def hoisting(
    tiny_bundles: dict[str, Path],
    hoisted_bundles: dict[str, Path],
    image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    """A benchmark of a plain bundle and of one whose UNet is in three parts."""
    bundles = [tiny_bundles["onnxruntime-fp32"], hoisted_bundles["onnxruntime-fp32"]]
    return Outcome(bundles, image, tmp_path_factory.mktemp("bench-hoisted"))


@pytest.fixture(params=["outcome", "hoisting"])
def either(request: pytest.FixtureRequest) -> Outcome:
    found: Outcome = request.getfixturevalue(request.param)
    return found


# ------------------------------------------------------------------------------------------ what is measured


def test_the_results_are_read_back_as_they_were_written(outcome: Outcome) -> None:
    assert read_results(outcome.out / "results.json") == outcome.results
    assert json.loads((outcome.out / "results.json").read_text()) == results_as_dict(outcome.results)


def test_every_bundle_gets_a_strip_and_nothing_else_is_left(outcome: Outcome) -> None:
    files = {path.relative_to(outcome.out).as_posix() for path in outcome.out.rglob("*") if path.is_file()}
    strips = {f"{bundle.name}/strip.png" for bundle in outcome.results.bundles}
    assert files == {"results.json", "report.html", *strips}
    first = load_image(outcome.out / "onnxruntime-fp32" / "strip.png")
    assert first.shape == (64, 5 * 64 + 4 * 4, 3)  # frames 0, 2, 4, 6, 8
    assert np.array_equal(first[:, :64], load_image(outcome.settings.picture, (64, 64)))


def test_each_component_is_timed_the_stated_number_of_times(outcome: Outcome) -> None:
    for bundle in outcome.results.bundles:
        assert list(bundle.components) == ["text_encoder", "unet", "vae_encoder", "vae_decoder"]
        for component in bundle.components.values():
            latency = component.latency
            assert latency.run_count == RUNS
            assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
            assert component.load_ms > 0
            assert component.first_run_ms > 0


def test_component_sizes_are_those_of_the_files(either: Outcome) -> None:
    for path, bundle in zip(either.bundles, either.results.bundles, strict=True):
        for name, component in bundle.components.items():
            assert component.size_bytes == sum(file.stat().st_size for file in (path / name).iterdir())
        tokenizer = sum(file.stat().st_size for file in (path / "tokenizer").iterdir())
        assert bundle.size_bytes == tokenizer + sum(c.size_bytes for c in bundle.components.values())


def test_the_zoom_adds_up(outcome: Outcome) -> None:
    for bundle in outcome.results.bundles:
        zoom, opened = bundle.zoom, bundle.open
        assert zoom.frame_count == 9
        assert (zoom.keyframe.run_count, zoom.between_frame.run_count) == (2, 7)
        assert zoom.frames_per_second == pytest.approx(9 / zoom.seconds, rel=1e-2)
        with_open = 9 / (zoom.seconds + opened.from_process_start_ms / 1e3)
        assert zoom.frames_per_second_with_open == pytest.approx(with_open, rel=1e-2)
        unet, decoder = (bundle.components[name].latency.p10_ms for name in ("unet", "vae_decoder"))
        assert zoom.keyframe.median_ms > (2 * STEPS * unet + decoder) / 4  # one of noise: a factor of 4


def test_opening_is_timed_from_the_start_of_the_process(either: Outcome) -> None:
    for bundle in either.results.bundles:
        loading_ms = sum(component.load_ms for component in bundle.components.values())
        assert bundle.open.after_import_ms == pytest.approx(bundle.open.check_ms + loading_ms, rel=0.05, abs=5)
        imports_ms = bundle.open.from_process_start_ms - bundle.open.after_import_ms
        assert imports_ms > 20  # Python and numpy alone take longer


def test_memory_grows_on_opening_and_peaks_later(outcome: Outcome) -> None:
    for bundle in outcome.results.bundles:
        memory = bundle.memory
        assert 10e6 < memory.rss_after_import_bytes < memory.rss_after_open_bytes <= memory.peak_rss_bytes < 2e9
        assert memory.open_growth_bytes == memory.rss_after_open_bytes - memory.rss_after_import_bytes
    assert 1e6 < outcome.results.runtime_import.rss_growth_bytes < 200e6
    assert outcome.results.runtime_import.latency.median_ms > 1


def test_peak_memory_is_not_that_of_the_parent() -> None:
    ballast = np.ones(400 * 2**20, np.uint8)
    script = "from outzoom.benchmarks.measure import peak_rss_bytes; print(peak_rss_bytes())"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    assert int(output) < ballast.nbytes / 2


def test_the_measuring_process_imports_what_a_device_has_and_no_more() -> None:
    script = "import sys, outzoom.benchmarks.measure; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "outzoom.runtime" in output.split()
    heavy = {"torch", "matplotlib", "skimage", "scipy", "jinja2", "onnx", "onnxruntime", "openvino", "PIL"}
    assert not heavy & set(output.split())


def test_a_measuring_process_run_by_hand_prints_one_json_object_a_line(outcome: Outcome, image: Path) -> None:
    settings = json.dumps({"image": str(image), "seconds": 0.3, "keyframe_every": 4, "steps": 1, "runs": 1})
    command = [sys.executable, "-m", "outzoom.benchmarks.measure", str(outcome.bundles[0]), "--settings", settings]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert {message["type"] for message in messages[:-1]} == {"progress"}
    assert messages[-1]["type"] == "done"
    assert messages[-1]["result"]["components"]["unet"]["latency"]["run_count"] == 1
    assert done.stderr == ""


def test_progress_is_told_as_often_as_announced(either: Outcome) -> None:
    assert len(either.progress) == either.settings.stage_count(len(either.bundles))
    assert f"{either.results.bundles[0].name}: keyframe 2 of 2" in either.progress


def test_a_slow_component_runs_less_often(tiny_bundles: dict[str, Path], image: Path, tmp_path: Path) -> None:
    settings = quick(image, runs=500, budget_seconds=1e-6)
    result = measure_bundle(tiny_bundles["onnxruntime-fp32"], settings, tmp_path)
    assert {component.latency.run_count for component in result.components.values()} == {3}


def test_the_parts_of_a_hoisted_unet_are_components_like_others(hoisting: Outcome) -> None:
    plain, hoisted = hoisting.results.bundles
    assert list(hoisted.components) == list(open_manifest(hoisting.bundles[1]).manifest.components)
    assert hoisted.components.keys() - plain.components.keys() == {"unet_text", "unet_time"}
    for name in ("unet_text", "unet_time"):
        component = hoisted.components[name]
        assert component.latency.run_count == RUNS
        assert min(component.parameters, component.load_ms, component.first_run_ms, component.latency.p10_ms) > 0
    parameters = [component.parameters for name, component in hoisted.components.items() if name.startswith("unet")]
    assert sum(parameters) == pytest.approx(plain.components["unet"].parameters, rel=0.001)  # they share constants


def test_the_page_has_rows_and_bars_of_hoisted_parts_where_a_bundle_has_them(hoisting: Outcome) -> None:
    page = Page(hoisting.page)
    charts = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    plain, hoisted = (bundle.name for bundle in hoisting.results.bundles)
    titles = ["Text encoder", *PARTS, "UNet, one pass", "VAE encoder", "VAE decoder"]
    assert [chart.partition(". ")[0] for chart in charts[:6]] == titles
    for title, chart in zip(titles, charts[:6], strict=True):
        assert f"{hoisted}: " in chart
        assert (f"{plain}: " in chart) == (title not in PARTS)
    table = page.text.partition("First run, ms")[2].partition("What the engines compute in")[0]
    assert (table.count(plain), table.count(hoisted)) == (4, 6)


def test_each_component_says_what_it_computes_in(either: Outcome) -> None:
    for bundle in either.results.bundles:
        for component in bundle.components.values():
            assert component.executed is not None
            kinds = [set(counts) for counts in component.executed.counts.values()]
            assert kinds == [{"float32"}] * len(kinds)
            assert (component.executed.sparse_layers, component.executed.unmet) == (0, ())
        unet = bundle.components["unet"].executed
        assert unet is not None
        assert unet.counts.keys() == {"Conv", "MatMul", "attention"}


def test_what_engines_compute_in_is_left_out_where_no_package_reads_their_graphs(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {
        name: msgspec.structs.replace(component, executed=None)
        for name, component in outcome.results.bundles[0].components.items()
    }
    result = msgspec.structs.replace(outcome.results.bundles[0], components=without)
    inpainting = Inpainting(open_manifest(outcome.bundles[0]))
    assert with_executed(result, inpainting) == outcome.results.bundles[0]
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert with_executed(result, inpainting) == result
    results = msgspec.structs.replace(outcome.results, bundles=(result,))
    assert "What the engines compute in" not in render(outcome, results)


def test_the_page_shows_what_engines_compute_in_and_the_time_to_that_of_fp16(outcome: Outcome) -> None:
    exact, other, _ = outcome.results.bundles
    unet = exact.components["unet"]
    latency = msgspec.structs.replace(unet.latency, median_ms=unet.latency.median_ms / 4)
    executed = Executed({"Conv": {"int8": 7, "float32": 2}}, 3, ("conv_out.weight: float32, not int8",))
    half = msgspec.structs.replace(
        exact, name="half", recipe="fp16",
        components={**exact.components, "unet": msgspec.structs.replace(unet, latency=latency, executed=executed)},
    )  # fmt: skip
    page = Page(render(outcome, msgspec.structs.replace(outcome.results, bundles=(half, exact, other))))
    table = page.text.partition("What the engines compute in")[2].partition("The whole zoom")[0]
    rows = table.partition("UNet, one pass")[2].partition("VAE encoder")[0]
    assert re.search(r"half\s+7 int8, 2 float32\s+\S\s+\S\s+3\s+1\s+1\.00", rows)
    assert re.search(exact.name + r"\s.*none\s+none\s+4\.00", rows, re.DOTALL)
    assert re.search(other.name + r"\s.*none\s+none\s+\D\s", rows, re.DOTALL)
    assert "conv_out.weight: float32, not int8" in table


# ------------------------------------------------------------------------------------------ quality


def test_the_onnxruntime_bundle_in_fp32_is_the_reference(outcome: Outcome) -> None:
    reference, other, _ = outcome.results.bundles
    assert (reference.reference, reference.quality) == (reference.name, None)
    assert other.reference == reference.name
    assert other.quality is not None
    assert [keyframe.frame for keyframe in other.quality] == [4, 8]
    for keyframe in other.quality:
        assert keyframe.border_psnr_db is None or keyframe.border_psnr_db > 40
        assert keyframe.border_ssim > 0.99


def test_the_same_engines_paint_the_same_pictures_in_every_process(outcome: Outcome) -> None:
    copy = outcome.results.bundles[2]
    assert copy.quality is not None
    for keyframe in copy.quality:
        assert (keyframe.psnr_db, keyframe.border_psnr_db) == (None, None)
        assert (keyframe.ssim, keyframe.border_ssim) == (1, 1)


def test_each_painted_keyframe_has_a_seam_ratio(outcome: Outcome) -> None:
    for bundle in outcome.results.bundles:
        assert len(bundle.seam_ratios) == 2
        assert all(ratio is not None and 0 < ratio < 10 for ratio in bundle.seam_ratios)


def test_a_prompt_that_was_cut_is_a_warning(outcome: Outcome) -> None:
    for bundle in outcome.results.bundles:
        (warning,) = bundle.warnings
        assert "tokens" in warning
        assert warning in outcome.page


def test_only_the_same_checkpoint_at_the_same_size_is_a_reference(outcome: Outcome) -> None:
    bundle = outcome.results.bundles[1]

    def changed(**changes: Any) -> Any:
        return msgspec.structs.replace(bundle, name="other", **changes)

    fp16 = msgspec.structs.replace(bundle, recipe="fp16")
    assert reference_of(fp16, [fp16, changed()]) == "other"
    assert reference_of(fp16, [fp16, bundle, changed(target="onnxruntime")]) == "other"
    for change in ({"width": 128}, {"height": 128}, {"source_sha256": "0"}, {"recipe": "fp16"}):
        assert reference_of(fp16, [fp16, changed(**change)]) is None


# ------------------------------------------------------------------------------------------ numbers and names


def test_latency_of_five_samples() -> None:
    latency = Latency.of([5, 1, 4, 2, 3])
    assert latency == Latency(median_ms=3, p10_ms=1.4, p90_ms=4.6, run_count=5)


def test_latencies_overlap_when_their_ranges_meet() -> None:
    quick, slow, wide = Latency(2, 1, 3, 9), Latency(5, 4, 6, 9), Latency(4, 2, 7, 9)
    assert not quick.overlaps(slow)
    assert not slow.overlaps(quick)
    assert wide.overlaps(quick)
    assert slow.overlaps(wide)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (0.5, "0.500"), (9.876, "9.88"), (98.76, "98.8"), (1234.5, "1,234")],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_only_equal_pictures_are_shown_as_equal() -> None:
    assert [similarity(value) for value in (1.0, 0.999999, 0.9999, 0.5)] == ["1", ">0.9999", "0.9999", "0.5000"]


def test_bundles_of_one_name_are_told_apart_by_their_folders() -> None:
    names = unique_names([Path("/a/x/int8"), Path("/a/y/int8"), Path("/b/x/int8"), Path("/b/x/fp32")])
    assert list(names) == ["x-int8", "y-int8", "x-int8-2", "fp32"]
    assert names["x-int8-2"] == Path("/b/x/int8").resolve()


def test_a_folder_name_that_is_no_text_becomes_text() -> None:
    assert list(unique_names([Path("/a/\udcff"), Path("/a/\u202eb\nc")])) == ["\ufffd", "\ufffdb c"]


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cpu_model
    assert 1 <= machine.usable_cores <= machine.logical_cores
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert machine.packages["numpy"] == np.__version__
    assert machine.warning == busy_warning(machine.load_average_1min, machine.usable_cores)


def test_a_busy_machine_is_a_warning_on_the_page(outcome: Outcome) -> None:
    assert busy_warning(load=1.0, cores=2) is None
    warning = busy_warning(load=1.1, cores=2)
    assert warning is not None
    assert "1.10 on 2 cores" in warning
    machine = msgspec.structs.replace(outcome.results.machine, warning=warning)
    assert warning in render(outcome, msgspec.structs.replace(outcome.results, machine=machine))


# ------------------------------------------------------------------------------------------ the page


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.script = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.script += data
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def render(outcome: Outcome, results: Results) -> str:
    strip = np.stack([PICTURE[:64, :64]] * 5)
    return render_report(results, {bundle.name: strip for bundle in results.bundles})


def test_the_page_needs_nothing_from_outside(outcome: Outcome) -> None:
    page = Page(outcome.page)
    loads = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "ping"}
    for _, attributes in page.tags:
        for name in loads & attributes.keys():
            assert attributes[name].startswith(("data:image/webp;base64,", "data:video/mp4;base64,", "#"))
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert "@import" not in outcome.page
    assert set(re.findall(r"url\((.)", outcome.page)) <= {"#"}
    assert "://" not in outcome.page


def test_every_picture_and_plot_has_a_text_in_its_place(outcome: Outcome) -> None:
    page = Page(outcome.page)
    images = page.all("img")
    assert len(images) == 3 * 5
    assert len({image["alt"] for image in images}) == len(images)
    plots = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(plots) == len(page.all("svg")) >= 4 + 1 + 5
    texts = [plot["aria-label"] for plot in plots]
    of_one = [text for text in texts if text.startswith("Memory of ")]
    assert len(of_one) == 3
    assert all("openvino-cpu-fp32" in text for text in texts if text not in of_one)
    films = page.all("video")
    assert [film["aria-label"].partition(":")[0] for film in films] == [b.name for b in outcome.results.bundles]


def test_ids_are_unique_in_the_page(outcome: Outcome) -> None:
    ids = [attributes["id"] for _, attributes in Page(outcome.page).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_a_hostile_name_is_text(outcome: Outcome) -> None:
    page = Page(outcome.page)
    assert outcome.results.bundles[2].name == HOSTILE
    assert HOSTILE in page.text
    assert not any("onerror" in attributes or attributes.get("src") == "x" for _, attributes in page.tags)
    assert "<img src=x" not in outcome.page


def test_everything_that_a_bundle_says_of_itself_is_text(outcome: Outcome) -> None:
    attack = '"><script>alert(1)</script>'
    hostile = msgspec.structs.replace(
        outcome.results.bundles[1],
        **dict.fromkeys(("name", "target", "recipe", "weights", "compute", "source", "source_sha256"), attack),
        tools={attack: attack},
        warnings=(attack,),
        reference=None,
        quality=None,
    )
    settings = quick(outcome.settings.picture, prompt=attack)
    results = msgspec.structs.replace(outcome.results, bundles=(hostile,), settings=settings, command=attack)
    page = Page(render(outcome, results))
    assert "alert" not in page.script
    assert page.text.count(attack) > 8


def test_the_page_says_when_there_is_nothing_to_compare_with(outcome: Outcome) -> None:
    alone = msgspec.structs.replace(outcome.results.bundles[1], reference=None, quality=None, recipe="int8")
    page = Page(render(outcome, msgspec.structs.replace(outcome.results, bundles=(alone,))))
    assert "No quality for openvino-cpu-fp32: among the bundles given there is no fp32 bundle" in page.text
    assert "ref." not in [word.strip()[-4:] for word in page.words]


def test_no_winner_is_named_within_the_noise(outcome: Outcome) -> None:
    def with_keyframe(index: int, latency: Latency) -> Any:
        bundle = outcome.results.bundles[index]
        return msgspec.structs.replace(bundle, zoom=msgspec.structs.replace(bundle.zoom, keyframe=latency))

    def page(other: Latency) -> str:
        bundles = (with_keyframe(0, Latency(100, 90, 110, 9)), with_keyframe(1, other))
        return Page(render(outcome, msgspec.structs.replace(outcome.results, bundles=bundles))).text

    assert "not told apart from openvino-cpu-fp32" in page(Latency(120, 105, 130, 9))
    assert "2.00 times as fast as the next, openvino-cpu-fp32" in page(Latency(200, 190, 210, 9))


def test_large_frames_are_shown_smaller(outcome: Outcome) -> None:
    import base64
    import io

    strips = {bundle.name: np.zeros((5, 512, 768, 3), np.uint8) for bundle in outcome.results.bundles}
    image = Page(render_report(outcome.results, strips)).all("img")[0]
    data = base64.b64decode(image["src"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(data)).size == (256, 171)


# ------------------------------------------------------------------------------------------ what is refused


def refused(bundles: list[Path], out: Path, settings: BenchSettings) -> UserError:
    """The error, raised before anything was measured or written."""
    existed = out.exists()
    told: list[str] = []
    with pytest.raises(UserError) as caught:
        run_bench(bundles, out, settings, told.append)
    assert told == []
    assert out.exists() == existed
    return caught.value


def test_bad_input_is_refused_before_measuring(tiny_bundles: dict[str, Path], image: Path, tmp_path: Path) -> None:
    bundle, out = tiny_bundles["onnxruntime-fp32"], tmp_path / "out"
    assert "no bundle to measure" in str(refused([], out, quick(image)))
    assert "given twice" in str(refused([bundle, bundle / ".." / bundle.name], out, quick(image)))
    assert "there is no bundle" in str(refused([bundle, tmp_path / "nothing"], out, quick(image)))
    assert "there is no such file" in str(refused([bundle], out, quick(tmp_path / "no.png")))
    assert "not a directory" in str(refused([bundle], image, quick(image)))
    assert "not a directory" in str(refused([bundle], image / "out", quick(image)))
    assert "no valid text" in str(refused([bundle], out, quick(tmp_path / "\udcff.png")))
    assert "steps" in str(refused([bundle], out, quick(image, steps=100_000)))


def test_a_missing_backend_is_refused_before_measuring(
    tiny_bundles: dict[str, Path], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    error = refused(list(tiny_bundles.values()), tmp_path / "out", quick(image))
    assert isinstance(error, MissingPackageError)
    assert "outzoom[openvino]" in error.hint


@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "psutil", "skimage"])
def test_a_missing_package_of_the_extra_is_refused_before_measuring(
    tiny_bundles: dict[str, Path], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = refused([tiny_bundles["onnxruntime-fp32"]], tmp_path / "out", quick(image))
    assert "outzoom[bench]" in error.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 0}, "runs must be 1"),
        ({"warm_ups": -1}, "warm-ups must be 0"),
        ({"budget_seconds": 0}, "above 0 seconds"),
        ({"keyframe_every": 1}, "between keyframes"),
        ({"seconds": 0.1}, "before its first painted keyframe"),
        ({"seconds": -1}, "seconds must be above 0"),
        ({"guidance": -1}, "guidance must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_settings_that_cannot_be_measured_with_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        quick(Path("picture.png"), **changes)


def test_results_of_another_schema_or_none_at_all_are_refused(outcome: Outcome, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="can't be read"):
        read_results(path)
    for content, message in [
        (b"{", "holds no results"),
        (b"\xff", "holds no results"),
        (b'{"schema_version": 1}', "holds no results"),
        (b'{"schema_version": 2, "news": 1}', "schema version 2"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_results(path)


def test_what_the_measuring_process_finds_wrong_is_raised_here(
    tiny_bundles: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["onnxruntime-fp32"], bundle)
    name = open_manifest(bundle).manifest.components["unet"].engine
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(UserError, match="SHA-256"):
        run_bench([bundle], tmp_path / "out", quick(image))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------ when it is stopped


def measuring_process(parent: int) -> psutil.Process:
    (child,) = (one for one in psutil.Process(parent).children() if "outzoom.benchmarks.measure" in one.cmdline())
    return child


def test_a_killed_measuring_process_is_an_error_with_a_hint(
    tiny_bundles: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    def kill(text: str) -> None:
        if text.startswith("unet"):
            measuring_process(os.getpid()).kill()

    with pytest.raises(OutzoomError, match="killed by signal 9") as caught:
        measure_bundle(tiny_bundles["onnxruntime-fp32"], quick(image), tmp_path, kill)
    assert "memory" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_the_measuring_process_and_leaves_nothing(
    tiny_bundles: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, pathlib\n"
        "from outzoom.benchmarks import BenchSettings, run_bench\n"
        "bundle, image, out = map(pathlib.Path, sys.argv[1:])\n"
        "settings = BenchSettings(image=image, runs=10_000, budget_seconds=300)\n"
        "try: run_bench([bundle], out, settings, lambda text: print(text, flush=True))\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    bundle, out, scratch = tiny_bundles["onnxruntime-fp32"], tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", script, str(bundle), str(image), str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)}
    ) as one:
        assert one.stdout is not None
        while "unet" not in one.stdout.readline():
            assert one.poll() is None
        child = measuring_process(one.pid)
        one.send_signal(signal.SIGINT)  # to the parent alone, as a service manager does
        assert one.stdout.read().splitlines()[-1] == "stopped"
    deadline = time.monotonic() + 10
    while child.is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running()
    assert not out.exists()
    assert [entry for entry in scratch.iterdir() if entry.name.startswith("outzoom")] == []
