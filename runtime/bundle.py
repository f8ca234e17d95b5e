"""A bundle: a self-contained directory of compiled engines, and the manifest that says what is in it.

A bundle is untrusted until it was checked: the schema, every path (nothing outside the bundle, no links out of
it), every size and every hash, before any engine is handed a file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from .errors import BundleError
from .files import sha256_of
from .shapes import NAMES, Dimension, Size, dimensions, resolve

SCHEMA_VERSION = 3
MANIFEST_NAME = "bundle.json"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_SIDE = 8192
MAX_SIZES = 64
MAX_RANK = 8
MAX_ELEMENTS = 2**30
DTYPES = ("float16", "float32", "int32", "int64")
LATENT_CHANNELS = 4  # an inpainting UNet takes them twice, and the mask
TOKENIZER_FOLDER = "tokenizer"
REBUILD = "build the bundle again with outzoom export-all"
COPY_AGAIN = "copy the bundle again, or build it again"

Json = dict[str, Any]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, shape and numpy dtype name of an engine's input or output; named sides are set when it is loaded."""

    name: str
    shape: tuple[Dimension, ...]
    dtype: str


class Component(msgspec.Struct, frozen=True):
    """One compiled model: the engine's file, its tensors, and how near it is to the checkpoint's module."""

    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    # Against the diffusers module in fp32, of a hoisted UNet's parts that of the whole; None: equal to the last bit.
    parity_psnr_db: float | None = None
    packed: str | None = None  # the file that the engine's weights are made of when it is loaded: see packed.py

    def input_shape(self, name: str) -> tuple[Dimension, ...]:
        """The shape of the input called `name`; raises BundleError when there is none."""
        for spec in self.inputs:
            if spec.name == name:
                return spec.shape
        found = ", ".join(spec.name for spec in self.inputs) or "none"
        raise BundleError(f"engine '{self.engine}' has no input '{name}'; its inputs: {found}", hint=REBUILD)


class FileEntry(msgspec.Struct, frozen=True):
    """Size and SHA-256 of a file in the bundle."""

    size_bytes: int
    sha256: Sha256


class Source(msgspec.Struct, frozen=True):
    """The checkpoint that a bundle was made from; `sha256` covers all of its weights."""

    name: str
    sha256: Sha256


class RecipeInfo(msgspec.Struct, frozen=True):
    """What was done to the weights, and the precision that the engine computes in."""

    name: str
    weights: str
    compute: str


class StageInfo(msgspec.Struct, frozen=True):
    """A step of the build, and what it took: `cpu_seconds` of all cores, which other work does not make longer."""

    name: str
    seconds: float
    peak_memory_bytes: int
    cpu_seconds: float | None = None  # older bundles do not say


class BuildInfo(msgspec.Struct, frozen=True):
    """How the bundle was made; `key` changes with anything that goes into it."""

    key: str
    stages: tuple[StageInfo, ...]


class Manifest(msgspec.Struct, frozen=True):
    """The contents of `bundle.json`."""

    schema_version: int
    target: str
    recipe: RecipeInfo
    source: Source
    sizes: tuple[Size, ...]  # (width, height) in pixels, the first is the default
    batch: int  # the most pictures that the UNet takes at once: 2 does guidance in one call
    vae_scale_factor: int  # pixels per latent cell along a side
    latent_scale: float  # the VAE's scaling factor: latents are multiplied by it before the UNet sees them
    max_tokens: int
    scheduler: Json  # the checkpoint's scheduler_config.json
    components: dict[str, Component]
    files: dict[str, FileEntry]
    tools: dict[str, str]
    build: BuildInfo
    checked_on: str | None = None  # another target, on whose engines the parity was measured

    @property
    def is_hoisted(self) -> bool:
        """Whether the UNet comes in three parts."""
        return any(name in self.components for name in HOISTED_INPUTS)

    @property
    def takes_guidance(self) -> bool:
        """Whether the UNet was distilled with its guidance, and is told how strong that is to be."""
        return any(spec.name == GUIDANCE for spec in self.components["unet"].inputs)

    @property
    def has_shallow_unet(self) -> bool:
        """Whether steps can take the deep features of an earlier one."""
        return SHALLOW_UNET in self.components


COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
# What may be hoisted out of the UNet, by the input that it was made to depend on alone: run once for each prompt and
# once for each timestep; "unet" is then the rest, and takes their outputs in place of these inputs.
HOISTED_INPUTS = {"unet_text": "encoder_hidden_states", "unet_time": "timestep"}
GUIDANCE = "guidance"  # an input of a UNet that was distilled with it, and runs for the prompt alone
# A UNet that takes the deep features of an earlier step, which "unet" then makes beside its prediction.
SHALLOW_UNET, DEEP_FEATURES = "unet_shallow", "deep_features"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and its checked manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists; raises BundleError for any other."""
        if name not in self.manifest.files:
            raise BundleError(f"bundle '{self.path}' lists no file '{name}'", hint=REBUILD)
        return self.path / name

    def engine(self, component: str) -> Path:
        """The path of a component's engine."""
        return self.file(self.manifest.components[component].engine)

    def component_size_bytes(self, component: str) -> int:
        """Size of the files in the folder of a component's engine."""
        folder = PurePosixPath(self.manifest.components[component].engine).parent
        return sum(
            entry.size_bytes for name, entry in self.manifest.files.items() if folder in PurePosixPath(name).parents
        )

    @property
    def size_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size_bytes for entry in self.manifest.files.values())


def open_manifest(path: Path | str, verify: bool = True, progress: Callable[[int], None] | None = None) -> Bundle:
    """Open the bundle in the directory `path` and check it; the engines are not loaded yet.

    `verify=False` skips the hashes, not the sizes: for a bundle that was verified before. `progress` is called
    with the number of bytes hashed since the last call. Raises BundleError that says what is wrong.
    """
    root = Path(path)
    try:
        manifest = _decode(_read_manifest(root), root)
        _check_values(manifest, root)
        for name, entry in manifest.files.items():
            _check_file(root, name, entry, verify, progress)
        _check_unlisted(root, manifest)
    except OSError as error:
        message = f"the bundle '{root}' can't be read: {error.strerror or error}"
        raise BundleError(message, hint="check the path and the rights of its files") from error
    return Bundle(root, manifest)


def _read_manifest(root: Path) -> bytes:
    file = root / MANIFEST_NAME
    if not root.exists():
        raise BundleError(f"there is no bundle '{root}'", hint="outzoom export-all makes bundles")
    if not file.is_file():
        raise BundleError(
            f"'{root}' is not a bundle: it has no {MANIFEST_NAME}",
            hint="give the directory <OUT>/<target>-<recipe> that outzoom export-all wrote",
        )
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"'{file}' is {file.stat().st_size} bytes; at most {MAX_MANIFEST_BYTES} are read", hint=REBUILD
        )
    return file.read_bytes()


def _decode(data: bytes, root: Path) -> Manifest:
    class Versioned(msgspec.Struct):
        schema_version: int

    try:
        version = msgspec.json.decode(data, type=Versioned).schema_version
        if version != SCHEMA_VERSION:
            age = "newer" if version > SCHEMA_VERSION else "older"
            raise BundleError(
                f"bundle '{root}' has schema version {version}, {age} than this outzoom reads ({SCHEMA_VERSION})",
                hint="update outzoom on this device" if age == "newer" else REBUILD,
            )
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"the manifest of bundle '{root}' is damaged: {error}", hint=REBUILD) from error


def _check_values(manifest: Manifest, root: Path) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise BundleError(f"the manifest of bundle '{root}' is wrong: {message}", hint=REBUILD)

    cell = manifest.vae_scale_factor
    require(1 <= cell <= 64, f"vae_scale_factor {cell} is not in 1..64")
    require(1 <= len(manifest.sizes) <= MAX_SIZES, f"{len(manifest.sizes)} sizes are not 1..{MAX_SIZES}")
    require(manifest.batch in (1, 2), f"batch {manifest.batch} is not 1 or 2")
    for side in (side for size in manifest.sizes for side in size):
        require(
            cell <= side <= MAX_SIDE and side % cell == 0,
            f"side {side} is no multiple of {cell} up to {MAX_SIDE}",
        )
    require(1e-3 <= manifest.latent_scale <= 1e3, f"latent_scale {manifest.latent_scale} is not in 0.001..1000")
    require(3 <= manifest.max_tokens <= 4096, f"max_tokens {manifest.max_tokens} is not in 3..4096")
    missing = [name for name in COMPONENTS if name not in manifest.components]
    require(not missing, f"components missing: {', '.join(missing)}")
    for name, component in manifest.components.items():
        require(
            component.engine in manifest.files,
            f"the engine of {name}, '{component.engine}', is not a listed file",
        )
        require(
            component.packed is None or component.packed in manifest.files,
            f"the packed weights of {name}, '{component.packed}', are not a listed file",
        )
        for spec in (*component.inputs, *component.outputs):
            named = all(side in NAMES for side in spec.shape if isinstance(side, str))
            shape = resolve(spec.shape, _largest(manifest)) if named else (0,)
            fits = len(shape) <= MAX_RANK and all(n > 0 for n in shape)
            fits = fits and math.prod(shape) <= MAX_ELEMENTS and spec.dtype in DTYPES
            shown = f"{spec.shape[:MAX_RANK]} of {spec.dtype}"
            require(fits, f"{name}: the tensor '{spec.name}' has the shape {shown}")
    listed = [name for name in manifest.files if name.startswith(f"{TOKENIZER_FOLDER}/")]
    require(bool(listed), f"it lists no file in '{TOKENIZER_FOLDER}'")
    specs = [spec for component in manifest.components.values() for spec in (*component.inputs, *component.outputs)]
    recipe = manifest.recipe
    names = [
        manifest.target,
        manifest.checked_on or "",
        manifest.source.name,
        recipe.name,
        recipe.weights,
        recipe.compute,
    ]
    names += [manifest.build.key, *(stage.name for stage in manifest.build.stages)]
    names += [*manifest.components, *manifest.files, *manifest.tools, *manifest.tools.values()]
    for text in (*names, *(text for spec in specs for text in (spec.name, spec.dtype))):
        require(text.isprintable(), f"the name {text!r} holds characters that can't be printed")
    for size in manifest.sizes:
        numbers = dimensions(size, cell, manifest.batch)
        for (name, tensor), needed in _needed_shapes(manifest).items():
            found = resolve(manifest.components[name].input_shape(tensor), numbers)
            shape = resolve(needed, numbers)
            require(found == shape, f"{name}: the input '{tensor}' has the shape {found[:8]}, expected {shape}")
    if manifest.is_hoisted:
        _check_hoisted(manifest.components, require)
    if manifest.has_shallow_unet:
        _check_shallow(manifest.components, require)


def _check_hoisted(components: dict[str, Component], require: Callable[[bool, str], None]) -> None:
    """The UNet must take a sample and exactly what its hoisted parts make."""
    missing = [name for name in HOISTED_INPUTS if name not in components]
    require(not missing, f"unet_text and unet_time come together, but there is no {', '.join(missing)}")
    made: list[TensorSpec] = []
    for name, source in HOISTED_INPUTS.items():
        inputs = [spec.name for spec in components[name].inputs]
        require(inputs == [source], f"{name} must have the one input '{source}', not {inputs[:8]}")
        made += components[name].outputs
    taken = [spec for spec in components["unet"].inputs if spec.name != "sample"]
    for whose, specs in (("what unet_text and unet_time make", made), ("what unet takes", taken)):
        name, times = Counter(spec.name for spec in specs).most_common(1)[0] if specs else ("", 1)
        require(times == 1, f"'{name}' is {times} times in {whose}")
    for spec in sorted(set(made) - set(taken), key=lambda spec: spec.name):
        require(False, f"unet does not take '{spec.name}' {spec.shape} {spec.dtype}, which is made for it")
    for spec in sorted(set(taken) - set(made), key=lambda spec: spec.name):
        require(False, f"unet takes what unet_text and unet_time do not make: '{spec.name}' {spec.shape} {spec.dtype}")


def _check_shallow(components: dict[str, Component], require: Callable[[bool, str], None]) -> None:
    """It must take the whole UNet's deep features and nothing that the whole one does not take."""
    whole, shallow = components["unet"], components[SHALLOW_UNET]
    made = [spec for spec in whole.outputs if spec.name == DEEP_FEATURES]
    require(len(made) == 1, f"unet must make '{DEEP_FEATURES}' once for {SHALLOW_UNET}, not {len(made)} times")
    require(set(made) <= set(shallow.inputs), f"{SHALLOW_UNET} must take '{DEEP_FEATURES}' as unet makes them")
    for spec in sorted(set(shallow.inputs) - {*made, *whole.inputs}, key=lambda spec: spec.name):
        require(False, f"{SHALLOW_UNET} takes what unet does not: '{spec.name}' {spec.shape} {spec.dtype}")


def _largest(manifest: Manifest) -> dict[str, int]:
    """Every named dimension at its largest."""
    size = max(width for width, _ in manifest.sizes), max(height for _, height in manifest.sizes)
    return dimensions(size, manifest.vae_scale_factor, manifest.batch)


def _needed_shapes(manifest: Manifest) -> dict[tuple[str, str], tuple[Dimension, ...]]:
    """By component and input: the shapes that the inpainting pipeline will feed."""
    latent = ("latent_height", "latent_width")
    return {
        ("text_encoder", "input_ids"): (1, manifest.max_tokens),
        ("unet", "sample"): ("batch", 2 * LATENT_CHANNELS + 1, *latent),
        ("vae_encoder", "sample"): (1, 3, "height", "width"),
        ("vae_decoder", "latent_sample"): (1, LATENT_CHANNELS, *latent),
    }


def _check_file(root: Path, name: str, entry: FileEntry, verify: bool, progress: Callable[[int], None] | None) -> None:
    pure = PurePosixPath(name)
    leaves = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    file = root / name
    if leaves or not _is_inside(file, root):
        raise BundleError(f"bundle '{root}' names a file outside itself: '{name}'", hint="do not use this bundle")
    if not file.is_file():
        raise BundleError(f"bundle '{root}' is incomplete: '{name}' is missing", hint=COPY_AGAIN)
    size = file.stat().st_size
    if size != entry.size_bytes:
        verb = "truncated" if size < entry.size_bytes else "changed"
        raise BundleError(f"'{file}' is {verb}: {size} bytes, the manifest says {entry.size_bytes}", hint=COPY_AGAIN)
    if verify and sha256_of(file, progress) != entry.sha256:
        raise BundleError(f"'{file}' is not what was built: its SHA-256 differs from the manifest's", hint=COPY_AGAIN)


def _is_inside(file: Path, root: Path) -> bool:
    try:
        return file.resolve().is_relative_to(root.resolve())
    except RuntimeError:  # before Python 3.13: links that lead round in a circle
        return False


def _check_unlisted(root: Path, manifest: Manifest) -> None:
    """Engines and the tokenizer read what lies beside their files, so no file may lie there unchecked."""
    folders = {PurePosixPath(name).parent for name in manifest.files} - {PurePosixPath(".")}
    for folder in sorted(folders):
        for file in (root / folder).iterdir():
            name = (folder / file.name).as_posix()
            if file.is_file() and not file.name.startswith(".") and name not in manifest.files:
                raise BundleError(f"bundle '{root}' holds a file that it does not list: '{name}'", hint="remove it")


def describe_files(root: Path, but: Container[str] = ()) -> dict[str, FileEntry]:
    """Size and hash of every file under `root` except the manifest and those known already, for writing one."""
    files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    new = {name: p for name, p in files.items() if name != MANIFEST_NAME and name not in but}
    return {name: FileEntry(p.stat().st_size, sha256_of(p)) for name, p in new.items()}


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `bundle.json`; the caller builds the directory under another name and renames it when done."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (root / MANIFEST_NAME).write_bytes(data + b"\n")
