"""Devices as data: what each can do, and for every figure where it comes from and how sure it is.

A profile is a TOML file, one of `hardware/devices/*.toml` or the user's own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import platformdirs

from ..runtime.errors import UserError, unknown_name
from ..runtime.files import atomic_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "devices"
HOST = "host"
MAX_PROFILE_BYTES = 2**20
MAX_MEASURED_BYTES = 2**24
HINT = "docs/prediction.md lists the keys of a profile"

DataType = Literal["int8", "float16", "float32"]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
# read: in the source named; computed: from figures that were read; unverified: remembered, or of a doubtful source;
# measured: on this machine.
Confidence = Literal["read", "computed", "unverified", "measured"]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number, its source, and how sure it is."""

    value: Positive
    source: str
    confidence: Confidence


class Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`count` systolic arrays of `rows` x `columns` multipliers; what stays in them is the `stationary` operand."""

    rows: Count
    columns: Count
    stationary: Literal["output", "weight", "input"]
    source: str
    confidence: Confidence
    count: Count = 1


class Tile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The smallest product that a unit computes whole: what does not fill it is wasted."""

    rows: Count
    columns: Count
    depth: Count
    source: str
    confidence: Confidence


class Clocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The clocks that a device can be set to, ascending."""

    values_mhz: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=256)]
    source: str
    confidence: Confidence


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layer that was timed: its kind, the size of its product (rows x columns, over depth), and what it took.

    `kernel` is the side of a convolution's kernel. Of a layer without a product `rows` are its elements.
    """

    kind: str
    rows: Annotated[int, msgspec.Meta(ge=1)]
    columns: Annotated[int, msgspec.Meta(ge=1)]
    depth: Annotated[int, msgspec.Meta(ge=1)]
    kernel: Annotated[int, msgspec.Meta(ge=1)]
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device, or the part of one that runs the model; TOPS are 10^12 operations a second, two in a MAC.

    `kind` says how it computes: an array through which operands flow (`systolic`), units that take whole tiles
    (`tensor-cores`), vector instructions (`simd`), or an instruction for each operation (`per-operation`).
    `peak_tops` are dense, at `clock_mhz`. `on_chip_mb` is the memory that tiles are kept in. `power_watts` is what it
    may take for long; `idle_watts` what it takes however little it does.
    """

    name: str
    description: str
    kind: Literal["systolic", "tensor-cores", "simd", "per-operation"]
    peak_tops: dict[DataType, Figure]
    clock_mhz: Figure
    bandwidth_gb_per_s: Figure
    on_chip_mb: Figure
    power_watts: Figure
    idle_watts: Figure
    process_nm: Figure
    memory: Literal["DDR3", "DDR4", "DDR5", "LPDDR4", "LPDDR4X", "LPDDR5", "LPDDR5X", "HBM2"]
    target: str = ""  # of outzoom, that builds for it
    float_bits: Literal[16, 32] = 16  # what floats are computed in where the recipe leaves that to the device
    array: Array | None = None
    tile: Tile | None = None
    lanes: dict[DataType, Figure] = {}  # MACs of one instruction
    clocks: Clocks | None = None
    layer_overhead_us: Figure | None = None  # to start a layer
    sustained_fraction: Figure | None = None  # of the peak, by layers that fill the units
    skips_2_4: bool = False  # computes at twice the rate where two of four weights are zero
    measured: dict[str, dict[DataType, tuple[Point, ...]]] = {}  # by target and data type: timed layers

    def __post_init__(self) -> None:
        """What types alone do not say."""
        if not self.peak_tops:
            raise ValueError("peak_tops has no data type: one at least must be given")
        if self.kind == "systolic" and self.array is None:
            raise ValueError("a systolic device needs the table [array]")
        if self.idle_watts.value >= self.power_watts.value:
            raise ValueError("idle_watts must be below power_watts")

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure by the name that --set takes."""
        plain = {name: getattr(self, name) for name in self.__struct_fields__}
        found = {name: value for name, value in plain.items() if isinstance(value, Figure)}
        return found | {f"peak_tops.{name}": figure for name, figure in self.peak_tops.items()}


def known_devices() -> list[str]:
    """The names of the profiles that come with outzoom."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def host_file() -> Path:
    """Where the profile of the running machine is, once it was measured: in the user's cache folder."""
    return platformdirs.user_cache_path("outzoom") / f"{HOST}.json"


def read_profile(name: str) -> Profile:
    """The profile of that name, of `host`, or in the TOML file of that path; raises UserError saying what is wrong."""
    if name == HOST:
        if not host_file().is_file():
            raise UserError("this machine was not measured yet", hint="run outzoom devices --calibrate")
        return _read(host_file(), MAX_MEASURED_BYTES)
    if not name.endswith(".toml") and name not in known_devices():
        raise unknown_name("device", name, [*known_devices(), HOST])
    return _read(Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml", MAX_PROFILE_BYTES)


def _read(file: Path, limit_bytes: int) -> Profile:
    try:
        if file.stat().st_size > limit_bytes:
            raise UserError(f"'{file}' is over {limit_bytes} bytes; that is no profile", hint=HINT)
        text = file.read_text("utf-8")
        table = msgspec.json.decode(text) if file.suffix == ".json" else tomllib.loads(text)
        return msgspec.convert({"name": file.stem, **table}, Profile)
    except OSError as error:
        raise UserError(f"the profile '{file}' can't be read: {error.strerror or error}", hint=HINT) from error
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise UserError(f"the profile '{file}' is wrong: {error}", hint=HINT) from error


def write_host(profile: Profile) -> Path:
    """Keep what was measured on this machine; where."""
    with atomic_file(host_file()) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
    return host_file()


def with_changes(profile: Profile, changes: Mapping[str, float]) -> Profile:
    """The profile with some figures changed: what if? A clock takes the peaks with it.

    Raises UserError for a figure that the profile does not have, or a value that can't be.
    """
    for name, value in changes.items():
        if name not in profile.figures:
            raise unknown_name(f"figure of {profile.name}", name, profile.figures)
        if not (math.isfinite(value) and 0 < value <= 1e12):
            raise UserError(f"{name} must be above 0, got {value:g}")
        profile = _changed(profile, name, value)
    return profile


def _changed(profile: Profile, name: str, value: float) -> Profile:
    source = f"--set {name}={value:g}"
    figure = Figure(value, source, "unverified")
    peaks = dict(profile.peak_tops)
    if name == "clock_mhz":
        ratio = value / profile.clock_mhz.value
        peaks = {key: Figure(peak.value * ratio, source, "unverified") for key, peak in peaks.items()}
    elif name.startswith("peak_tops."):
        peaks = {key: figure if f"peak_tops.{key}" == name else peak for key, peak in peaks.items()}
        return msgspec.structs.replace(profile, peak_tops=peaks)
    try:
        return msgspec.structs.replace(profile, peak_tops=peaks, **{name: figure})
    except ValueError as error:
        raise UserError(f"{profile.name} with {name} = {value:g} can't be: {error}") from error


def parse_changes(texts: list[str]) -> dict[str, float]:
    """What `--set NAME=NUMBER` options say; raises UserError."""
    changes = {}
    for text in texts:
        name, separator, number = text.partition("=")
        try:
            changes[name.strip()] = float(number)
        except ValueError:
            separator = ""
        if not separator:
            raise UserError(f"--set takes NAME=NUMBER, got '{text}'", hint="for example --set bandwidth_gb_per_s=68")
    return changes
