"""What the machine says of its power and its temperature, from Linux's sysfs; None where it says nothing.

Sources: the kernel's Documentation/power/powercap/powercap.rst, Documentation/ABI/testing/sysfs-class-power and
sysfs-class-thermal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .machine import read_text

SYS = Path("/sys")
NOT_MEASURED = "not measured"
PLAUSIBLE_CELSIUS = (1.0, 150.0)  # zones that nothing is connected to tell 0, -273 or wilder things


@dataclass
class PowerMeter:
    """Watts since the last reading: of the processor (RAPL's energy counters), or of what the battery gives.

    RAPL's "psys" is the whole board where it exists, "package-*" the sockets; since 2020 most systems let root alone
    read them. `method` says what was read.
    """

    sys: Path = SYS
    clock: Callable[[], float] = time.monotonic
    method: str = NOT_MEASURED
    _last: dict[Path, tuple[float, int]] = field(default_factory=dict)  # by domain: when, and the counter then

    def read_watts(self) -> float | None:
        """The mean power since the last call; RAPL has none at the first."""
        domains = rapl_domains(self.sys)
        if not domains:
            watts = battery_watts(self.sys)
            self.method = NOT_MEASURED if watts is None else "battery"
            return watts
        self.method = "RAPL"
        found = [self._domain_watts(domain) for domain in domains]
        measured = [watts for watts in found if watts is not None]
        return sum(measured) if measured else None

    def _domain_watts(self, domain: Path) -> float | None:
        energy = read_number(domain / "energy_uj")
        if energy is None:
            return None
        now, before = self.clock(), self._last.get(domain)
        self._last[domain] = now, energy
        if before is None or now <= before[0]:
            return None
        used = energy - before[1]
        if used < 0:  # the counter went round
            used += read_number(domain / "max_energy_range_uj") or 0
        return used / 1e6 / (now - before[0]) if used >= 0 else None


def rapl_domains(sys: Path = SYS) -> list[Path]:
    """RAPL's folder of the whole board, or else of each socket, whose counter can be read."""
    names = {
        folder: read_text(str(folder / "name"))
        for folder in sorted((sys / "class/powercap").glob("intel-rapl:*"))
        if read_number(folder / "energy_uj") is not None
    }
    board = [folder for folder, name in names.items() if name == "psys"]
    return board or [folder for folder, name in names.items() if name.startswith("package-")]


def battery_watts(sys: Path = SYS) -> float | None:
    """What the system's batteries give now; None where none is being emptied."""
    found = list(_discharging(sys))
    return sum(found) if found else None


def temperature_celsius(sys: Path = SYS) -> float | None:
    """The hottest of the machine's thermal zones."""
    readings = [read_number(zone / "temp") for zone in sorted((sys / "class/thermal").glob("thermal_zone*"))]
    found = [reading / 1000 for reading in readings if reading is not None]
    return max((one for one in found if PLAUSIBLE_CELSIUS[0] <= one <= PLAUSIBLE_CELSIUS[1]), default=None)


def _discharging(sys: Path) -> Iterable[float]:
    """The watts of each of the system's batteries that is being emptied."""
    for supply in sorted((sys / "class/power_supply").glob("*")):
        kind, state, scope = (read_text(str(supply / name)) for name in ("type", "status", "scope"))
        if kind != "Battery" or state != "Discharging" or scope == "Device":  # a mouse's, say
            continue
        power = read_number(supply / "power_now")
        current, voltage = read_number(supply / "current_now"), read_number(supply / "voltage_now")
        if power is not None:
            yield abs(power) / 1e6
        elif current is not None and voltage is not None:
            yield abs(current * voltage) / 1e12


def read_number(file: Path) -> int | None:
    """The whole number in a small system file; None where there is none, or no permission."""
    text = read_text(str(file))
    try:
        return int(text)
    except ValueError:
        return None
