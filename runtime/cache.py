"""Where engines are kept as they are opened, weights expanded and compiled, so that opening them again is quick."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path, PurePosixPath

from .bundle import Bundle

VARIABLE = "OUTZOOM_CACHE"


class CacheWarning(UserWarning):
    """Nothing can be kept: engines are made anew whenever they are opened."""


def cache_folder() -> Path | None:
    """The folder that OUTZOOM_CACHE names, none if it is empty; by default one where the system keeps such things."""
    named = os.environ.get(VARIABLE)
    if named is None:
        from platformdirs import user_cache_path

        return user_cache_path("outzoom") / "engines"
    return Path(named).absolute() if named else None


def engine_cache(cache: Path | None, bundle: Bundle, engine: Path, version: str) -> Path | None:
    """The folder of an engine in the cache, made if need be; None with a warning if it can't be written.

    It is another one for other contents of the files in the engine's folder, its weights among them, and for another
    version of the package that runs it.
    """
    if cache is None:
        return None
    beside = engine.relative_to(bundle.path).parent.as_posix()
    files = sorted(bundle.manifest.files.items())
    hashes = [entry.sha256 for name, entry in files if PurePosixPath(name).parent.as_posix() == beside]
    key = hashlib.sha256("\0".join([version, *hashes]).encode()).hexdigest()[:16]
    folder = cache / f"{bundle.manifest.target}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"'{folder}' is read-only")
    except OSError as error:
        warnings.warn(
            f"engines can't be kept in '{cache}', and are made anew when they are opened: {error.strerror or error}; "
            f"name another folder in {VARIABLE}, or none",
            CacheWarning,
            stacklevel=2,
        )
        return None
    return folder
