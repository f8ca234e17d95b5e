"""What can only be compiled on the device: every engine is opened once, so that what that takes is kept."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .backends import backend_for
from .bundle import Bundle
from .cache import VARIABLE, CacheWarning, engine_cache
from .devices import device_of
from .errors import UserError
from .inpainting import Inpainting
from .shapes import Size


@dataclass(frozen=True)
class Compiled:
    """An engine that is ready: what it took to open it now, and again from what is kept; the first before, if so."""

    component: str
    size: Size
    device: str | None  # None: where the target says
    was_kept: bool
    open_seconds: float
    again_seconds: float
    kept_bytes: int


def compile_bundle(bundle: Bundle, cache: Path | None, devices: Mapping[str, str]) -> Iterator[Compiled]:
    """Compile each component of a bundle for each of its sizes into the cache, and open it again from there.

    Raises UserError where nothing can be kept and for a device that is not here, BundleError for an engine that the
    device does not take.
    """
    if cache is None:
        raise UserError(f"{VARIABLE} is empty, so nothing can be kept", hint="name a folder in it, or unset it")
    for size in bundle.manifest.sizes:
        inpainting = Inpainting(bundle, size, cache=cache, devices=devices)
        for component in bundle.manifest.components:
            yield _compiled(inpainting, component, _folder(bundle, component, cache), device_of(devices, component))


def _compiled(inpainting: Inpainting, component: str, folder: Path, device: str | None) -> Compiled:
    was_kept = any(folder.iterdir())
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        inpainting.open_component(component)
        seconds.append(time.perf_counter() - started)
        inpainting.close()
    kept_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    first, again = seconds
    return Compiled(component, inpainting.size, device, was_kept, first, again, kept_bytes)


def _folder(bundle: Bundle, component: str, cache: Path) -> Path:
    version = backend_for(bundle.manifest.target).version()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        try:
            folder = engine_cache(cache, bundle, bundle.engine(component), version)
        except CacheWarning as warning:
            raise UserError(str(warning)) from warning
    assert folder is not None  # else it warns
    return folder
