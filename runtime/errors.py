"""The errors that a user can meet: what happened, what was given, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class OutzoomError(Exception):
    """Something failed that the caller could not have known; the command line exits with 1.

    `hint` is one sentence on what to do next, printed under the message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes to another process, whatever arguments its class takes."""
        return _remade, (type(self), str(self), self.hint)


def _remade(cls: type[OutzoomError], message: str, hint: str) -> OutzoomError:
    error = cls.__new__(cls, message)
    OutzoomError.__init__(error, message, hint)
    return error


class UserError(OutzoomError):
    """The input is wrong (a file, a name, a value); the command line exits with 2."""

    exit_code = 2


class BundleError(UserError):
    """A bundle is missing, damaged, tampered with, or of a schema this version cannot read."""


class MissingPackageError(UserError):
    """A target needs a package that is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            hint=f"pip install 'outzoom[{extra}]'",
        )


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UserError:
    """An error for a name that is not in `known`: lists what is, and the nearest match."""
    names = sorted(known)
    close = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else ""
    return UserError(f"there is no {kind} '{given}'; known: {', '.join(names)}", hint=hint)


def printable(text: str) -> str:
    """`text` on one line, without characters that hide, reverse or are no text: names are whatever a folder has."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
