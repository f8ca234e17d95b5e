"""Atomic writing: a file or a directory appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import OutzoomError, UserError

if sys.platform != "win32":
    import fcntl

_CHUNK_BYTES = 1 << 20
_NUMPY_WROTE_LESS = re.compile(r"problem writing element|requested and \d+ written")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is synced and renamed to `path` when the block succeeds.

    The temporary file exists already, empty, and keeps the ending of `path`. Any exception, KeyboardInterrupt
    included, removes it and leaves what was at `path` as it was. A link is followed: its target is replaced.

    Raises UserError if `path` cannot be written, OutzoomError if the disk fills up.
    """
    with _partial_of(Path(path), directory=False) as (partial, target):
        yield partial
        _sync(partial)
        partial.replace(target)


@contextmanager
def atomic_directory(path: str | Path, marker: str = "") -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it is synced and swapped in when the block succeeds.

    An old directory at `path` stays until that moment and is then replaced whole, never merged. With `marker`
    it is replaced only if it is empty or holds a file of that name, so that a mistyped output folder does not
    delete somebody's documents. Where the kernel can exchange two names (Linux), even a power cut leaves
    either the old directory or the new one; elsewhere there is an instant with neither under its name.

    Raises UserError if `path` cannot be written or lacks its marker, OutzoomError if the disk fills up.
    """
    with _partial_of(Path(path), directory=True) as (partial, target):
        check_replaceable(target, marker)
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            _sync(entry)
        if not target.exists():
            partial.rename(target)
        elif not _exchange(partial, target):
            aside = target.with_name(f".replaced{partial.name.removeprefix('.partial')}")
            target.rename(aside)
            try:
                partial.rename(target)
            except BaseException:
                aside.rename(target)
                raise
            _remove(aside)


@contextmanager
def scratch_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path`, removed at the end whatever happens; raises as above.

    What a killed process left behind is removed by the next one that asks for the same `path`.
    """
    with _partial_of(Path(path), directory=True) as (partial, _):
        yield partial


def check_replaceable(path: Path, marker: str) -> None:
    """Raises UserError if there is a directory at `path` that holds something but no file called `marker`."""
    if marker and path.exists() and any(path.iterdir()) and not (path / marker).is_file():
        raise UserError(
            f"{path} is not replaced: it is not empty and holds no {marker}, so outzoom did not make it",
            hint="name another folder, or empty this one yourself",
        )


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the filesystem can't; neither name may be written to afterwards."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: str | Path, progress: Callable[[int], object] | None = None) -> str:
    """The SHA-256 of a file in lowercase hex, read in pieces of 1 MiB.

    `progress` is called after each piece with its length in bytes. Raises OSError as `open` does.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


@contextmanager
def _partial_of(path: Path, directory: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (temporary path, final path) and remove the temporary one at the end, whatever happened."""
    target = path.resolve()
    with ExitStack() as cleanup:
        try:
            if target.exists() and not (target.is_dir() if directory else target.is_file()):
                kind = "directory" if directory else "regular file"
                raise UserError(f"cannot write {path}: it is not a {kind}", hint="name another output")
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            partial = _create(target, directory, cleanup)
        except OSError as error:
            if _is_disk_full(error, target):
                raise _disk_full(path, written_bytes=0) from error
            raise UserError(
                f"cannot write {path}: {error.strerror or error}",
                hint="name an output in a folder that you may write to",
            ) from error
        try:
            yield partial, target
            _sync(target.parent)
        except Exception as error:
            if not _is_disk_full(error, target):
                raise
            entries = [partial, *partial.rglob("*")]
            written_bytes = sum(entry.stat().st_size for entry in entries if entry.is_file())
            cleanup.close()  # the space comes back only when the lock is closed too
            raise _disk_full(path, written_bytes) from error


def _create(target: Path, directory: bool, cleanup: ExitStack) -> Path:
    """Make the partial and lock it; the process id in its name is for people, the lock says it is in use.

    A kernel lock decides because it ends with its owner, whereas process ids are reused, and mean something
    else in every container that shares the folder.
    """
    while True:
        partial = target.with_name(f".partial-{os.getpid()}-{secrets.token_hex(4)}-{_tail(target)}")
        if directory:
            partial.mkdir()
        else:
            partial.touch(exist_ok=False)
        lock = _lock(partial)
        if lock is not None:
            cleanup.callback(os.close, lock)
        cleanup.callback(_remove, partial)
        if partial.exists():  # else another process took it for abandoned just before it was locked
            return partial


def _tail(target: Path) -> str:
    """The end of a name, short enough that a prefix fits into the 255 bytes of a file name."""
    return target.name[-50:]


def _lock(partial: Path) -> int | None:
    """An open descriptor that holds the exclusive lock on `partial`, or None where it cannot be had."""
    if sys.platform == "win32":  # there, partials of killed processes stay until someone deletes them
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


def _remove_abandoned(target: Path) -> None:
    """Remove the partials of `target` whose process was killed; those of live processes are locked."""
    tail = _tail(target)
    for entry in target.parent.iterdir():
        prefix, _, name = entry.name.partition("-")
        if prefix == ".partial" and name.split("-", 2)[2:] == [tail]:
            lock = _lock(entry)
            if lock is not None:
                _remove(entry)
                os.close(lock)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink(missing_ok=True)


def _sync(entry: Path) -> None:
    """Wait until a file, or the list of a directory's names, is on the disk."""
    if entry.is_symlink() or (entry.is_dir() and os.name == "nt"):
        return
    descriptor = os.open(entry, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where kernel or filesystem cannot."""
    import ctypes

    at_cwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0)


def _free_bytes(target: Path) -> int:
    return shutil.disk_usage(next(folder for folder in target.parents if folder.exists())).free


def _is_disk_full(error: Exception, target: Path) -> bool:
    """Whether an error is a full disk: by its number or, as Pillow and numpy lose it, by looking.

    For numpy looking can be too late: onnx_ir removes what it has written before it lets the error through.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno is None:
        return _free_bytes(target) < _CHUNK_BYTES or bool(_NUMPY_WROTE_LESS.search(str(error)))
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _disk_full(path: Path, written_bytes: int) -> OutzoomError:
    return OutzoomError(
        f"the disk is full: {path} was being written, {written_bytes / 1e6:,.1f} MB of it were; "
        f"now that they are removed, {_free_bytes(path.resolve()) / 1e6:,.1f} MB are free",
        hint=f"free some space on the disk of {path.resolve().parent}, or name an output on another one",
    )
