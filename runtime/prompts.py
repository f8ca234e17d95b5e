"""What to paint when: prompts that take over from each other at a keyframe or at a time.

A file is plain text (see docs/zooming.md), or the JSON of the infinite-zoom extension for the Stable Diffusion web UI.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from .errors import UserError, printable

MAX_FILE_BYTES = 1 << 20
MAX_ROWS = 10_000
MAX_START = 1e7  # keyframes or seconds
_EPSILON_SECONDS = 1e-6
_ROW = re.compile(r"(?P<time>(?:\d+:){0,2}\d+(?:\.\d+)?)(?P<unit>s?)(?:\s+(?P<prompt>.*))?", re.ASCII)
_SETTING = re.compile(r"(?P<name>[A-Za-z]+)\s*:\s*(?P<text>.*)", re.ASCII)
_SETTINGS = ("before", "after", "negative")
_EXAMPLE = "a line is a keyframe or a time and a prompt: '4 a quiet sea' or '12.5s a quiet sea'; see docs/zooming.md"


class PicturesIgnoredWarning(UserWarning):
    """A file of the infinite-zoom extension names pictures; they are not used."""


@dataclass(frozen=True)
class Row:
    """A prompt, and from which keyframe or second on it is painted; `where` is what errors call it."""

    start: float
    prompt: str
    where: str = ""


@dataclass(frozen=True)
class Prompts:
    """Rows sorted by their starts. `negative` is what the file says not to paint, None where it says nothing."""

    rows: tuple[Row, ...]
    in_seconds: bool = False
    negative: str | None = None

    @classmethod
    def always(cls, prompt: str) -> Prompts:
        """One prompt from the first keyframe to the last."""
        return cls((Row(0, prompt),))

    def at(self, keyframe: int, seconds: float) -> str:
        """The prompt of a keyframe whose edge comes into view at a time, in seconds of the zoom-out."""
        position = seconds + _EPSILON_SECONDS if self.in_seconds else keyframe
        return self.rows[max(bisect_right(self._starts, position) - 1, 0)].prompt

    @cached_property
    def _starts(self) -> list[float]:
        return [row.start for row in self.rows]


def read_prompts(path: str | Path, first: str | None = None) -> Prompts:
    """The prompts of a file; `first` is painted until its first row.

    Raises UserError, which names the line or the row, for a file that can't be read or does not say what to paint.
    """
    path = Path(path)
    text = _text(path)
    read = _read_json if text.lstrip().startswith("{") else _read_lines
    prompts = read(path, text)
    _check(path, prompts)
    if prompts.rows[0].start > (0 if prompts.in_seconds else 1):  # keyframe 0 is the picture, nobody paints it
        if first is None:
            raise UserError(
                f"the prompts {path}, {prompts.rows[0].where}: nothing says what to paint before",
                hint="begin with a row for 0, or give --prompt too, which is painted until then",
            )
        prompts = Prompts((Row(0, first), *prompts.rows), prompts.in_seconds, prompts.negative)
    return prompts


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            found = "it is not a regular file" if path.exists() else "there is no such file"
            raise UserError(f"cannot read the prompts {path}: {found}", hint="check the path")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"cannot read the prompts {path}: {error.strerror or error}", hint="check its rights"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"the prompts {path} take more than {MAX_FILE_BYTES // 2**20} MiB", hint="give a smaller file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"the prompts {path}, line {line}: this is not UTF-8", hint="save the file as UTF-8") from error


def _check(path: Path, prompts: Prompts) -> None:
    if not prompts.rows:
        raise UserError(f"the prompts {path} hold no prompt", hint=_EXAMPLE)
    if len(prompts.rows) > MAX_ROWS:
        raise UserError(f"the prompts {path} have more than {MAX_ROWS} rows", hint="give fewer")
    for before, row in pairwise(prompts.rows):
        if before.start == row.start:
            kind = "the second" if prompts.in_seconds else "keyframe"
            raise UserError(
                f"the prompts {path}, {row.where}: {kind} {row.start:g} has a prompt already, in {before.where}",
                hint="leave one of them out",
            )


def _read_lines(path: Path, text: str) -> Prompts:
    rows: list[Row] = []
    settings: dict[str, str] = {}
    in_seconds: bool | None = None
    for number, line in enumerate(text.split("\n"), 1):
        words, where = " ".join(line.split()), f"line {number}"
        if not words or words.startswith("#"):
            continue
        if row := _ROW.fullmatch(words):
            of_row = bool(row["unit"]) or ":" in row["time"]
            if in_seconds is not None and of_row != in_seconds:
                units = {True: "seconds", False: "keyframes"}
                raise _wrong(path, where, f"it counts in {units[of_row]}, the lines before in {units[in_seconds]}")
            in_seconds = of_row
            if not of_row and "." in row["time"]:
                raise _wrong(path, where, f"keyframe {row['time']} is not a whole number")
            start = _start(path, where, sum(60**i * float(part) for i, part in enumerate(row["time"].split(":")[::-1])))
            rows.append(Row(start, row["prompt"] or "", where))
        elif setting := _SETTING.fullmatch(words):
            name = setting["name"].lower()
            if name not in _SETTINGS or name in settings:
                what = f"'{name}' was given already" if name in settings else f"there is no setting '{name}'"
                raise _wrong(path, where, f"{what}; the settings are {', '.join(_SETTINGS)}")
            settings[name] = setting["text"]
        else:
            raise _wrong(path, where, f"'{printable(words[:40])}' does not begin with a keyframe, a time or a setting")
    return _made(rows, settings.get("before"), settings.get("after"), settings.get("negative"), bool(in_seconds))


class _Table(msgspec.Struct):
    data: list[Any]  # rows are looked at one by one, so that an error names one


class _File(msgspec.Struct, rename="camel"):
    prompts: _Table
    pre_prompt: str | None = None
    post_prompt: str | None = None
    neg_prompt: str | None = None


def _read_json(path: Path, text: str) -> Prompts:
    """Rows of the table are [step, prompt, ...]; step 1 paints keyframe 1, the first around the picture.

    Source: iz_helpers/promptschema.json and run.py of v8hid/infinite-zoom-automatic1111-webui.
    """
    try:
        file = msgspec.json.decode(text, type=_File)
    except msgspec.ValidationError as error:
        raise UserError(
            f"the prompts {path} are not as the infinite-zoom extension has them: {error}",
            hint='{"prompts": {"data": [[0, "a reef"], [4, "a quiet sea"]]}, "prePrompt": "", "postPrompt": ""}',
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        found = re.search(r"byte (\d+)", str(error))
        line = text.encode().count(b"\n", 0, int(found[1])) + 1 if found else 1
        raise UserError(
            f"the prompts {path}, line {line}: this is no JSON: {error}", hint="check commas, quotes and braces"
        ) from error
    rows = []
    has_pictures = False
    for number, cells in enumerate(file.prompts.data, 1):
        where = f"row {number} of prompts.data"
        if isinstance(cells, list) and all(cell is None or cell == "" for cell in cells[:2]):
            continue  # the extension's table keeps rows that nobody filled
        if not isinstance(cells, list) or len(cells) < 2 or not isinstance(cells[1], str):
            raise _wrong(path, where, "a row is [step, prompt], the prompt a text")
        has_pictures |= any(isinstance(cell, str) and bool(cell.strip()) for cell in cells[2:4])
        rows.append(Row(_step(path, where, cells[0]), cells[1].strip(), where))
    if has_pictures:
        warnings.warn(f"the pictures that {path} names are not used", PicturesIgnoredWarning, stacklevel=3)
    return _made(rows, file.pre_prompt, file.post_prompt, file.neg_prompt or None, in_seconds=False)


def _step(path: Path, where: str, cell: object) -> float:
    try:
        if isinstance(cell, bool) or not isinstance(cell, (int, float, str)) or int(float(cell)) != float(cell):
            raise ValueError
        return _start(path, where, float(cell))
    except (ValueError, OverflowError):
        raise _wrong(path, where, f"the step {printable(str(cell)[:40])!r} is not a whole number") from None


def _start(path: Path, where: str, start: float) -> float:
    if not 0 <= start <= MAX_START:
        raise _wrong(path, where, f"{start:g} is not within 0 to {MAX_START:g}")
    return start


def _made(
    rows: Iterable[Row], before: str | None, after: str | None, negative: str | None, in_seconds: bool
) -> Prompts:
    def around(prompt: str) -> str:
        return " ".join(part.strip() for part in (before, prompt, after) if part and part.strip())

    full = (Row(row.start, around(row.prompt), row.where) for row in rows)
    return Prompts(tuple(sorted(full, key=lambda row: row.start)), in_seconds, negative)


def _wrong(path: Path, where: str, problem: str) -> UserError:
    return UserError(f"the prompts {path}, {where}: {problem}", hint=_EXAMPLE)
