"""Keyframes on disk: a zoom that was stopped goes on from its last one, and is shown from them in any order.

A folder holds `keyframes.json`, which says what the whole zoom is made from, and a PNG file for each keyframe. A mark
in each file hashes that, and what this keyframe and all before it are made from: a file of another zoom has another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import UserError, printable
from .files import atomic_file, check_replaceable
from .shapes import Size

STATE_FILE = "keyframes.json"
LOCK_FILE = ".lock"
SCHEMA_VERSION = 1  # goes up too when keyframes are made in another way from the same settings
MAX_STATE_BYTES = 1 << 20
_MARK = "outzoom keyframe"  # the keyword of a PNG text chunk
_HASH = re.compile("[0-9a-f]{64}")
_OTHER_FOLDER = "--restart paints anew, and --keyframes DIR keeps these and takes another folder"


class _State(msgspec.Struct):
    schema_version: int
    settings: dict[str, Any]


class _Mark(msgspec.Struct):
    key: str
    made_from: dict[str, Any]


class KeyframeFolder:
    """The keyframes of one zoom in a folder, which is made when the first one is saved.

    `settings` is what all of them are made from and `made_from(i)` what keyframe i is made from besides the one
    before, both as JSON has it. Pictures are uint8 (height, width, 3) of one size, (width, height).
    """

    def __init__(
        self, path: str | Path, size: Size, settings: Mapping[str, Any], made_from: Callable[[int], Mapping[str, Any]]
    ) -> None:
        """Raises UserError for a folder that holds something else, or keyframes of another zoom."""
        self.path = Path(path)
        self.size = size
        self._settings = _as_json(settings)
        self._made_from = made_from
        self._keys = [_hash(SCHEMA_VERSION, self._settings)]
        self._lock: Any = None
        self._check_state()

    def count(self, last: int) -> int:
        """How many of the keyframes 0 to `last` are there, without a gap.

        Raises UserError for one that was made from something else: its number, what was given and what is asked for.
        """
        numbers = (int(file.stem) for file in self.path.glob("[0-9]*.png") if file.stem.isdecimal())
        there = {number for number in numbers if number <= last and self._is_there(self._file(number), number)}
        return next(count for count in range(last + 2) if count not in there)

    def load(self, index: int) -> NDArray[np.uint8]:
        """A keyframe. Raises UserError if it is not there, damaged, or made from something else."""
        return self._load(self._file(index), index)

    def save(self, index: int, picture: NDArray[np.uint8]) -> None:
        """Keep a keyframe: it is there whole, or not at all. Raises UserError where another process keeps some."""
        self._save(self._file(index), index, picture)

    def has_lap(self, last: int) -> bool:
        """Whether all keyframes of a closed lap are there: see film.py."""
        return all(self._is_there(self._lap_file(i), last) for i in range(last))

    def load_lap(self, index: int, last: int) -> NDArray[np.uint8]:
        """A keyframe of a lap of `last` keyframes that is closed; raises as `load` does."""
        return self._load(self._lap_file(index % last), last)

    def save_lap(self, index: int, last: int, picture: NDArray[np.uint8]) -> None:
        """Keep a keyframe of a lap that is closed."""
        self._save(self._lap_file(index % last), last, picture)

    def remove(self) -> None:
        """Remove the keyframes and, if nothing else is in it, the folder."""
        if self._lock is not None:
            self._lock.release()
        remove_keyframes(self.path)

    def _file(self, index: int) -> Path:
        return self.path / f"{index:05d}.png"

    def _lap_file(self, index: int) -> Path:
        return self.path / f"lap-{index:05d}.png"

    def _key(self, index: int) -> str:
        while len(self._keys) <= index:
            self._keys.append(_hash(self._keys[-1], _as_json(self._made_from(len(self._keys)))))
        return self._keys[index]

    def _check_state(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"cannot keep keyframes in {self.path}: it is not a directory", hint="name another folder")
        _check_ours(self.path)
        file = self.path / STATE_FILE
        if not file.exists():
            return
        try:
            if file.stat().st_size > MAX_STATE_BYTES:
                raise msgspec.DecodeError("it is too large")
            state = msgspec.json.decode(file.read_bytes(), type=_State)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UserError(f"{file} is damaged: {error}", hint=_OTHER_FOLDER) from error
        if state.schema_version != SCHEMA_VERSION:
            raise UserError(f"the keyframes in {self.path} are of another version of outzoom", hint=_OTHER_FOLDER)
        if changed := _differences(state.settings, self._settings):
            raise UserError(f"the keyframes in {self.path} are of another zoom: {changed}", hint=_OTHER_FOLDER)

    def _is_there(self, file: Path, index: int) -> bool:
        """Whether a file is there and ours, its pixels not looked at."""
        if not file.exists():
            return False
        with _opened(file) as image:
            self._check(file, image, index)
        return True

    def _load(self, file: Path, index: int) -> NDArray[np.uint8]:
        with _opened(file) as image:
            self._check(file, image, index)
            return np.array(image)

    def _check(self, file: Path, image: Any, index: int) -> None:
        """Only the file's head is read for this: no pixels are decoded before their number is known."""
        mark = msgspec.json.decode(str(image.info[_MARK]), type=_Mark)
        if image.size != self.size or image.mode != "RGB":
            raise ValueError(f"it is {image.size[0]}x{image.size[1]} {image.mode}, not {self.size} RGB")
        wanted = self._mark(file, index)
        if mark.key != wanted.key:
            changed = _differences(mark.made_from, wanted.made_from) or "one before it is another"
            raise UserError(f"the keyframe {file} is of another zoom: {changed}", hint=_OTHER_FOLDER)

    def _mark(self, file: Path, index: int) -> _Mark:
        return _Mark(_hash(self._key(index), file.name), _as_json(self._made_from(index)) if index else {})

    def _save(self, file: Path, index: int, picture: NDArray[np.uint8]) -> None:
        from PIL import Image, PngImagePlugin

        if picture.shape != (self.size[1], self.size[0], 3):
            raise ValueError(f"the keyframe has the shape {picture.shape}, the folder is for {self.size}")
        self._hold()
        if not (self.path / STATE_FILE).exists():
            state = {"schema_version": SCHEMA_VERSION, "settings": self._settings}
            with atomic_file(self.path / STATE_FILE) as partial:
                partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        text = PngImagePlugin.PngInfo()
        text.add_itxt(_MARK, msgspec.json.encode(self._mark(file, index)).decode())
        with atomic_file(file) as partial:
            Image.fromarray(picture).save(partial, format="PNG", pnginfo=text)

    def _hold(self) -> None:
        """Keep other processes from painting into the folder, until this one ends."""
        from filelock import FileLock, Timeout

        if self._lock is not None and self._lock.is_locked:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / LOCK_FILE, timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another zoom is at work on the keyframes in {self.path}",
                hint="wait until it has ended, or take another folder with --keyframes DIR",
            ) from error


def remove_keyframes(path: Path) -> None:
    """Remove what a KeyframeFolder keeps in a folder and, if nothing else is in it, the folder.

    Raises UserError for a folder that holds something but no keyframes.
    """
    if not path.exists():
        return
    _check_ours(path)
    for pattern in ("[0-9]*.png", "lap-[0-9]*.png", ".partial-*", LOCK_FILE, STATE_FILE):
        for file in path.glob(pattern):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _check_ours(path: Path) -> None:
    """Raises UserError for a folder that holds something but no keyframes; half a file of a killed run is nothing."""
    if any(entry.name != LOCK_FILE and not entry.name.startswith(".partial-") for entry in path.iterdir()):
        check_replaceable(path, STATE_FILE)


@contextlib.contextmanager
def _opened(file: Path) -> Any:
    """A keyframe's file, opened by Pillow; whatever is wrong with it becomes a UserError."""
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged or hostile bytes
        reason = f"{type(error).__name__}: {printable(str(error))}" if str(error) else type(error).__name__
        raise UserError(
            f"the keyframe {file} is damaged, or not one of outzoom's ({reason})",
            hint="delete it: it is painted again",
        ) from error


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, in words: values where they are short, else that they are others."""
    changed = []
    for name in {**there, **wanted}:
        old, new = there.get(name), wanted.get(name)
        if old != new:
            is_hash = any(isinstance(value, str) and _HASH.fullmatch(value) for value in (old, new))
            changed.append(f"another {name}" if is_hash else f"{name} {_short(old)} there, {_short(new)} here")
    return "; ".join(changed)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= 80 else f"{text[:76]}...")


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file: tuples are lists."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
