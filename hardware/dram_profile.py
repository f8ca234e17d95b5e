"""A DRAM's organization, timing and currents, and the energies that follow from them.

Currents are those of data sheets: IDD0 activating and precharging row after row, IDD2N with all banks closed, IDD3N
with a row open, IDD2P and IDD3P the same powered down, IDD4R and IDD4W reading and writing without a pause, IDD5
refreshing. Energies are Micron's: the current of an operation above that of standby, times voltage and time.

Source: Micron TN-41-01, "Calculating Memory System Power for DDR3".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import msgspec

from ..runtime.errors import UserError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "drams"
MAX_PROFILE_BYTES = 2**16
_PICO, _MILLI = 1e-12, 1e-3


class Organization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Channels work side by side, the chips of a channel as one: a burst or a row is that of all of them together."""

    channels: int
    chips: int
    banks: int
    rows: int
    row_bytes: int  # of a bank of a chip
    burst_bytes: int  # of a chip
    source: str
    confidence: str


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In nanoseconds, by JEDEC's names; `trtw_ns` is the pause of the bus before writing after reading."""

    burst_ns: float
    tcl_ns: float
    trcd_ns: float
    trp_ns: float
    tras_ns: float
    trc_ns: float
    trrd_ns: float
    tfaw_ns: float
    twr_ns: float
    trtp_ns: float
    twtr_ns: float
    trtw_ns: float
    trfc_ns: float
    trefi_ns: float
    source: str
    confidence: str


class Rail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a chip draws from one supply."""

    name: str
    volts: float
    idd0_ma: float
    idd2p_ma: float
    idd2n_ma: float
    idd3p_ma: float
    idd3n_ma: float
    idd4r_ma: float
    idd4w_ma: float
    idd5_ma: float
    source: str
    confidence: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    organization: Organization
    timing: Timing
    rails: tuple[Rail, ...]


@dataclass(frozen=True)
class Dram:
    """A memory: `channels` of the profile's organization count."""

    name: str
    organization: Organization
    timing: Timing
    rails: tuple[Rail, ...]

    @property
    def row_bytes(self) -> int:
        """A row of all chips of a channel."""
        return self.organization.row_bytes * self.organization.chips

    @property
    def burst_bytes(self) -> int:
        """A burst of all chips of a channel, the least that is read or written."""
        return self.organization.burst_bytes * self.organization.chips

    @property
    def capacity_bytes(self) -> int:
        """Of all channels."""
        return self.organization.channels * self.organization.banks * self.organization.rows * self.row_bytes

    @property
    def peak_bytes_per_s(self) -> float:
        """Of all channels, bursts without a pause."""
        return self.organization.channels * self.burst_bytes / (self.timing.burst_ns * 1e-9)

    @cached_property
    def activate_joules(self) -> float:
        """Opening a row of all chips of a channel, and closing it."""
        t = self.timing
        closed = t.trc_ns - t.tras_ns
        return self._sum(lambda r: (r.idd0_ma * t.trc_ns - r.idd3n_ma * t.tras_ns - r.idd2n_ma * closed) * r.volts)

    @cached_property
    def read_joules(self) -> float:
        """A burst."""
        return self._sum(lambda r: (r.idd4r_ma - r.idd3n_ma) * r.volts * self.timing.burst_ns)

    @cached_property
    def write_joules(self) -> float:
        """A burst."""
        return self._sum(lambda r: (r.idd4w_ma - r.idd3n_ma) * r.volts * self.timing.burst_ns)

    @cached_property
    def refresh_joules(self) -> float:
        """One refresh of a channel, above standby."""
        return self._sum(lambda r: (r.idd5_ma - r.idd3n_ma) * r.volts * self.timing.trfc_ns)

    @property
    def refresh_watts(self) -> float:
        """Of all channels, on average."""
        return self.organization.channels * self.refresh_joules / (self.timing.trefi_ns * 1e-9)

    def background_watts(self, open_rows: bool = True, powered_down: bool = False) -> float:
        """Of all channels, without refreshing."""
        field = f"idd{3 if open_rows else 2}{'p' if powered_down else 'n'}_ma"
        each: float = sum(getattr(rail, field) * _MILLI * rail.volts for rail in self.rails)
        return each * self.organization.chips * self.organization.channels

    def _sum(self, milliampere_volt_nanoseconds: Callable[[Rail], float]) -> float:
        return self.organization.chips * _PICO * sum(milliampere_volt_nanoseconds(rail) for rail in self.rails)

    def with_channels(self, channels: int, chips: int = 1) -> Dram:
        """The same memory with other numbers of channels, and of chips side by side in each."""
        organization = msgspec.structs.replace(self.organization, channels=channels, chips=chips)
        return Dram(self.name, organization, self.timing, self.rails)


def known_drams() -> list[str]:
    """The names of the profiles that come with outzoom."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


@lru_cache
def read_dram(name: str) -> Dram:
    """The profile of that name, or in the TOML file of that path; raises UserError that says what is wrong."""
    file = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in known_drams():
        raise unknown_name("DRAM", name, known_drams())
    try:
        if file.stat().st_size > MAX_PROFILE_BYTES:
            raise UserError(f"'{file}' is over {MAX_PROFILE_BYTES} bytes; that is no profile of a DRAM")
        found = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _File)
    except OSError as error:
        raise UserError(f"the DRAM profile '{file}' can't be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        hint = "take one of hardware/drams as a pattern"
        raise UserError(f"the DRAM profile '{file}' is wrong: {error}", hint=hint) from error
    dram = Dram(found.name, found.organization, found.timing, found.rails)
    _check(dram, file)
    return dram


def _check(dram: Dram, file: Path) -> None:
    o = dram.organization
    sizes = (o.channels, o.chips, o.banks, o.rows, o.row_bytes, o.burst_bytes)
    times = (getattr(dram.timing, name) for name in Timing.__struct_fields__ if name.endswith("_ns"))
    if min(*sizes, *times) <= 0 or dram.row_bytes % dram.burst_bytes:
        raise UserError(f"the DRAM profile '{file}' needs sizes and times above 0, and rows of whole bursts")
