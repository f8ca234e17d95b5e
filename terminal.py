"""What the commands say and show: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from .runtime.errors import printable

# Names of files and of what is in them are shown as they are, be there brackets or colons in them.
out_console = Console(soft_wrap=True, markup=False, emoji=False)
err_console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def progress_bars(transient: bool = False) -> Iterator[Progress]:
    """Bars with the time left, on stderr; a transient one is gone when it is done."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err_console,
        transient=transient,
        disable=transient and not err_console.is_terminal,
    ) as progress:
        yield progress


def show(as_json: bool, result: dict[str, Any], print_table: Callable[[], None]) -> None:
    """The result as JSON on stdout, or as `print_table` prints it."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        print_table()


def warn(message: Warning | str, *_: Any) -> None:
    """A warning on stderr."""
    err_console.print(f"warning: {printable(str(message))}", style="yellow", highlight=False)


def builtins_of(struct: Any) -> dict[str, Any]:
    """A struct as what JSON has."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(struct)
    return found
