"""Reads scheduler_config.json one checked value at a time: the file comes from outside."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..errors import UserError

Config = Mapping[str, object]
T = TypeVar("T")


def bad_value(key: str, wanted: str, got: object) -> UserError:
    """The error for a value that is not what `wanted` says."""
    return UserError(f"scheduler config: {key} must be {wanted}, got {reprlib.repr(got)}")


def choice(config: Config, key: str, allowed: Sequence[T]) -> T:
    """The value of `key`, one of `allowed`; the first of them where the key is absent."""
    value = config.get(key, allowed[0])
    for candidate in allowed:
        if type(value) is type(candidate) and value == candidate:
            return candidate
    raise bad_value(key, " or ".join(json.dumps(candidate) for candidate in allowed), value)


def flag(config: Config, key: str) -> bool:
    """True or false; absent and null are false."""
    return bool(choice(config, key, (False, True, None)))


def number(config: Config, key: str, default: float, low: float, high: float) -> float:
    """A number between `low` and `high`, both allowed."""
    value = config.get(key, default)
    # bool is an int to Python; NaN fails the comparison
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise bad_value(key, f"a number in {low:g}..{high:g}", value)
    return float(value)


def integer(config: Config, key: str, default: int, low: int, high: int) -> int:
    """A whole number between `low` and `high`, both allowed."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_value(key, f"a whole number in {low}..{high}", value)
    return value


def require(config: Config, supported: Mapping[str, Sequence[object]]) -> None:
    """Refuses options that change the result in ways a scheduler does not follow."""
    for key, allowed in supported.items():
        choice(config, key, allowed)


def check_steps(steps: int, most: int) -> None:
    """Refuses a number of steps outside 1..`most`."""
    if not 1 <= steps <= most:
        raise UserError(f"this scheduler takes 1..{most} steps, got {steps}")
