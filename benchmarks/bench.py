"""`bench`: measure bundles one after the other, compare their pictures, and write the results and the report."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..runtime import MissingPackageError, UserError, VideoReader, film_strip, load_image, open_manifest, save_png
from ..runtime.backends import backend_for
from ..runtime.camera import load_opencv
from ..runtime.errors import printable
from ..runtime.files import sha256_of
from ..runtime.geometry import outside_mask
from .drift import WINDOW, bench_drift
from .keyframe_result import KeyframeResult
from .loop import loop_data_uri
from .machine import describe_machine
from .process import measure_bundle, measure_runtime_import
from .prompt_agreement import PromptAgreement, check_clip
from .quality import SSIM_WINDOW_PX, Mask, Picture, border_psnr_db, border_ssim, ms_ssim, psnr_db, seam_ratio, ssim
from .report import write_report
from .results import SCHEMA_VERSION, BundleResult, EnergyResult, KeyframeQuality, Results, write_results
from .roofline import measured_roofs, with_work
from .settings import BenchSettings, to_json
from .video import bench_video
from .zoom_energy import modelled_energy

PACKAGES = {"jinja2": "jinja2", "matplotlib": "matplotlib", "psutil": "psutil", "skimage": "scikit-image"}
MAX_DRIFT_KEYFRAMES = 10_000
REFERENCE_RECIPE = "fp32"
REFERENCE_TARGET = "onnxruntime"  # of several fp32 bundles


@dataclass(frozen=True)
class Measured:
    """A bundle's result, its pictures, both uint8 RGB of shape (pictures, height, width, 3), and a data URI."""

    result: BundleResult
    keyframes: NDArray[np.uint8]
    strip: NDArray[np.uint8]
    loop: str | None


def run_bench(
    bundles: Sequence[Path],
    out: Path,
    settings: BenchSettings | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
    beside: KeyframeResult | None = None,
) -> Results:
    """Measure each bundle in a fresh process; write OUT/results.json, OUT/report.html and OUT/<bundle>/strip.png.

    `on_progress` is told what begins, `settings.stage_count(len(bundles))` times. Everything that can be wrong
    with the input raises UserError before the first measurement; nothing is written before the last one. `beside`
    is taken into the report: other pipelines that painted beside ours, in another run.
    """
    settings = settings or BenchSettings()
    _check(bundles, out, settings)
    named = unique_names(bundles)
    modelled = {name: modelled_energy(path, settings) for name, path in named.items() if settings.power_model}
    machine, started = describe_machine(), time.monotonic()
    on_progress("the runtime's import")
    runtime_import = measure_runtime_import()
    measured = {}
    for name, path in named.items():
        measured[name] = _measure(name, path, settings, on_progress)
    on_progress("the report")
    with_quality = [_with_quality(each, measured, settings) for each in measured.values()]
    with_energy = [_with_energy(each, modelled) for each in with_quality]
    results = Results(
        schema_version=SCHEMA_VERSION,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        outzoom_version=version("outzoom"),
        command=printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        settings=settings,
        picture_sha256=sha256_of(settings.picture),
        machine=machine,
        runtime_import=runtime_import,
        bundles=tuple(_with_prompt_agreement(with_energy, measured, settings)),
        roofs=measured_roofs(),
        beside=beside,
        wall_seconds=round(time.monotonic() - started, 1),
    )
    strips = {name: each.strip for name, each in measured.items()}
    for name, strip in strips.items():
        save_png(film_strip(list(strip)), out / name / "strip.png")
    write_results(results, out / "results.json")
    loops = {name: each.loop for name, each in measured.items() if each.loop is not None}
    write_report(results, strips, out / "report.html", loops)
    return results


def check_more(video: Path | None, drift_keyframes: int | None) -> None:
    """Raise what `bench_more` would raise after minutes of measuring."""
    if video is not None:
        load_opencv()
        with VideoReader(video):
            pass
    if drift_keyframes is not None and not 2 * WINDOW <= drift_keyframes <= MAX_DRIFT_KEYFRAMES:
        raise UserError(
            f"drift is measured over {2 * WINDOW} to {MAX_DRIFT_KEYFRAMES} keyframes, got {drift_keyframes}",
            hint="50 show it",
        )


def bench_more(
    bundles: Sequence[Path],
    out: Path,
    settings: BenchSettings,
    video: Path | None,
    drift_keyframes: int | None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What is measured when it is asked for, by the name of its file in OUT: a video's border, and drift."""
    more: dict[str, Any] = {}
    if video is not None:
        more["video"] = msgspec.json.decode(
            to_json(bench_video(unique_names(bundles), video, out, settings, on_progress))
        )
    if drift_keyframes is not None:
        more["drift"] = msgspec.json.decode(
            to_json(bench_drift(unique_names(bundles), out, settings, drift_keyframes, on_progress))
        )
    return more


def _check(bundles: Sequence[Path], out: Path, settings: BenchSettings) -> None:
    """Raise for what would otherwise go wrong after minutes of measuring."""
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise MissingPackageError(package, "bench", "outzoom bench") from error
    if not bundles:
        raise UserError("there is no bundle to measure", hint="name one or more; outzoom export-all makes them")
    twice = [str(path) for path, count in Counter(path.resolve() for path in bundles).items() if count > 1]
    if twice:
        raise UserError(f"a bundle is given twice: {', '.join(twice)}", hint="name each bundle once")
    try:
        str(settings.picture).encode()  # as the results will hold it
    except UnicodeEncodeError as error:
        raise UserError(f"the path {str(settings.picture)!r} is no valid text", hint="rename the picture") from error
    for path in bundles:
        manifest = open_manifest(path, verify=False).manifest  # the measuring process verifies the hashes
        backend_for(manifest.target).version()
        settings.painting.make_scheduler(manifest.scheduler)
        size = manifest.sizes[0]
        if min(size) < SSIM_WINDOW_PX:
            raise UserError(f"'{path}' paints {size[0]}x{size[1]}: SSIM needs {SSIM_WINDOW_PX} pixels a side")
        load_image(settings.picture, size)
    if settings.clip is not None:
        check_clip(settings.clip)
    _check_writable(out)


def _check_writable(out: Path) -> None:
    existing = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"cannot write into {out}: {existing} is not a directory", hint="name another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {out}: no permission in {existing}", hint="name another --out")


def unique_names(bundles: Sequence[Path]) -> dict[str, Path]:
    """Each bundle by the name of its folder; with its parent's, and at last a number, where others share that."""
    paths = [path.resolve() for path in bundles]
    counts = Counter(path.name for path in paths)
    named: dict[str, Path] = {}
    for path in paths:
        name = printable(path.name if counts[path.name] == 1 else f"{path.parent.name}-{path.name}") or "bundle"
        numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        named[next(each for each in numbered if each not in named)] = path
    return named


def _measure(name: str, path: Path, settings: BenchSettings, on_progress: Callable[[str], None]) -> Measured:
    with tempfile.TemporaryDirectory(prefix="outzoom-bench-") as folder:
        work = Path(folder)
        result = measure_bundle(path, settings, work, lambda text: on_progress(f"{name}: {text}"))
        keyframes, strip = (np.load(work / f"{kind}.npy", allow_pickle=False) for kind in ("keyframes", "strip"))
        film = np.memmap(work / "film.raw", np.uint8, "r").reshape(-1, *strip.shape[1:])
        loop = loop_data_uri(film, settings.motion.fps)
        del film  # an open file can't be removed everywhere
    return Measured(with_work(msgspec.structs.replace(result, name=name), path), keyframes, strip, loop)


def _with_quality(one: Measured, measured: Mapping[str, Measured], settings: BenchSettings) -> BundleResult:
    """The bundle's result with its seams, and its pictures' distance from those of the fp32 bundle, if any."""
    result = one.result
    mask = outside_mask((result.width, result.height), settings.motion.scale)
    reference = reference_of(result, [each.result for each in measured.values()])
    quality = None
    if reference is not None and reference != result.name:
        triples = zip(settings.keyframe_indices, measured[reference].keyframes, one.keyframes, strict=True)
        quality = tuple(_quality(frame, theirs, ours, mask) for frame, theirs, ours in list(triples)[1:])
    seams = tuple(_finite(seam_ratio(picture, mask)) for picture in one.keyframes[1:])
    return msgspec.structs.replace(result, seam_ratios=seams, reference=reference, quality=quality)


def _quality(frame: int, reference: Picture, picture: Picture, mask: Mask) -> KeyframeQuality:
    value, scales = ms_ssim(reference, picture) or (None, None)
    return KeyframeQuality(
        frame=frame,
        border_psnr_db=_finite(border_psnr_db(reference, picture, mask)),
        border_ssim=border_ssim(reference, picture, mask),
        psnr_db=_finite(psnr_db(reference, picture)),
        ssim=ssim(reference, picture),
        ms_ssim=value,
        ms_ssim_scales=scales,
    )


def _with_energy(result: BundleResult, modelled: Mapping[str, EnergyResult]) -> BundleResult:
    """The result with what was modelled, if nothing was measured."""
    return msgspec.structs.replace(result, energy=result.energy or modelled.get(result.name))


def _with_prompt_agreement(
    results: Sequence[BundleResult], measured: Mapping[str, Measured], settings: BenchSettings
) -> list[BundleResult]:
    """The results with how well the last painted keyframe agrees with the prompt, if the settings name a CLIP."""
    if settings.clip is None:
        return list(results)
    clip = PromptAgreement(settings.clip)
    scores = [clip.of(measured[result.name].keyframes[-1], settings.prompt) for result in results]
    pairs = zip(results, scores, strict=True)
    return [msgspec.structs.replace(result, prompt_agreement=round(score, 6)) for result, score in pairs]


def reference_of(result: BundleResult, results: Sequence[BundleResult]) -> str | None:
    """The name of the fp32 bundle made from the same checkpoint at the same size, preferably for ONNX Runtime."""

    def comparable(other: BundleResult) -> bool:
        same = ("source_sha256", "width", "height")
        return other.recipe == REFERENCE_RECIPE and all(getattr(other, f) == getattr(result, f) for f in same)

    candidates = [other for other in results if comparable(other)]
    candidates.sort(key=lambda other: other.target != REFERENCE_TARGET)
    return candidates[0].name if candidates else None


def _finite(value: float) -> float | None:
    """JSON knows no infinity: None stands for it, and for not-a-number."""
    return round(value, 4) if math.isfinite(value) else None
