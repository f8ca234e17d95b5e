"""What a backend is: it turns an ONNX model into an engine file, and runs engine files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import TensorSpec

Array = NDArray[Any]
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Loading:
    """How an engine is to be loaded.

    It computes in `compute`, 'float32' or 'fastest', with the named sides of its `inputs` set to the numbers in
    `sides`. A frugal one takes less memory, and maybe more time. `cache` is a folder for what makes loading quick the
    next time, `device` where it is to run, None for where its target says.
    """

    compute: str = "float32"
    inputs: Sequence[TensorSpec] = ()
    sides: Mapping[str, int] = field(default_factory=dict)
    frugal: bool = False
    cache: Path | None = None
    device: str | None = None


class Engine(Protocol):
    """A loaded model with static shapes."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs, by name; the arrays are the caller's."""
        ...

    def rest(self) -> None:
        """Give back the memory that it works in, as far as the engine can; the next run takes it again."""
        ...

    def close(self) -> None:
        """Give the memory back; the engine can't be used afterwards."""
        ...


class Backend(Protocol):
    """One inference engine on one kind of device."""

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Write the engine for the ONNX model (and its weights) into `folder`; the engine's path."""
        ...

    def weights_file(self, engine: Path) -> Path:
        """The file beside an engine that holds its weights."""
        ...

    def load(self, engine: Path, loading: Loading) -> Engine:
        """Load an engine that `compile` wrote; raises UserError for a device that is not here."""
        ...

    def absent(self) -> str | None:
        """Why engines do not run on this machine, though the package is installed; None: they do."""
        ...

    def version(self) -> str:
        """The version of the package behind the backend; raises MissingPackageError when it is not installed."""
        ...
