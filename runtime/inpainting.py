"""Stable Diffusion inpainting on compiled engines: paint the masked part of a picture from a prompt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backends import Array, Engine, Loading, backend_for
from .bundle import HOISTED_INPUTS, REBUILD, Bundle
from .cache import engine_cache
from .denoising import Denoiser, Schedule
from .devices import device_of
from .engines import EngineFiles, EngineKey, EnginePool, engine_files, segments_of
from .errors import BundleError, UserError
from .extension import extended
from .schedulers import Scheduler, default_scheduler, make_scheduler
from .segments import SegmentedEngine
from .shapes import Size, dimensions, resolve
from .tiles import in_tiles
from .tokenizer import ClipTokenizer

Latents = NDArray[np.float32]
Picture = NDArray[np.uint8]
Feeds = dict[str, Array]
OpenEngine = Callable[[str, int], Engine]
Key = TypeVar("Key")
Made = TypeVar("Made")
MAX_GUIDANCE = 100.0
MAX_WHOLE_EVERY = 100
PROMPTS_KEPT = 4  # of SD2, a prompt's keys and values are 8 MB
TIMESTEPS_KEPT = 256  # and a timestep's projections 80 kB


class PromptTruncatedWarning(UserWarning):
    """A prompt has more tokens than the text encoder takes; the rest was left out."""


@dataclass(frozen=True)
class Painting:
    """How a picture is painted. `scheduler` None means the checkpoint's own."""

    steps: int = 20
    scheduler: str | None = None
    guidance: float = 7.5  # 1 or less: no guidance, half the work
    negative_prompt: str = ""
    seed: int = 0
    guided: tuple[float, float] = (0.0, 1.0)  # the part of the steps that is guided, of all from 0 to 1
    whole_every: int = 1  # 1 step in so many runs the whole UNet, the others the shallow one: see denoising.py
    strength: float = 1.0  # below 1: begin with so much noise on the extended picture, and leave out the steps before
    blend: bool = False  # put the known part back into the latents after every step

    def __post_init__(self) -> None:
        if not 0 <= self.guided[0] < self.guided[1] <= 1:
            raise UserError(
                f"the guided part of the steps must be within 0 to 1, got {self.guided[0]:g} to {self.guided[1]:g}",
                hint="0 to 1 are all, 0 to 0.6 the first 60 percent",
            )
        if not 1 <= self.whole_every <= MAX_WHOLE_EVERY:
            raise UserError(
                f"whole_every must be 1 to {MAX_WHOLE_EVERY}, got {self.whole_every}", hint="3 runs 1 step in 3 whole"
            )
        if not 0 < self.strength <= 1:
            raise UserError(
                f"the strength must be above 0 and at most 1, got {self.strength:g}", hint="1 is pure noise"
            )
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise UserError(f"guidance must be 0 to {MAX_GUIDANCE:g}, got {self.guidance}", hint="7.5 is usual")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"the seed must be 0 to 2**64 - 1, got {self.seed}")

    def make_scheduler(self, config: dict[str, Any]) -> Scheduler:
        """A scheduler for one run; raises UserError for an unknown name or a number of steps it can't do."""
        return make_scheduler(self.scheduler or default_scheduler(config), config, self.steps)

    def schedule(self, calls: int) -> Schedule:
        """What is done at each of the scheduler's calls that are not left out."""
        return Schedule(range(calls - max(round(calls * self.strength), 1), calls), self.guided, self.whole_every)


class Inpainting:
    """The engines of a bundle, loaded when first needed, chained into the inpainting pipeline.

    Source: Rombach et al. 2022 (latent diffusion, inpainting by concatenation of mask and masked latents);
    Ho and Salimans 2022 (classifier-free guidance).
    """

    def __init__(
        self,
        bundle: Bundle,
        size: Size | None = None,
        open_engine: OpenEngine | None = None,
        memory_limit_bytes: int | None = None,
        cache: Path | None = None,
        devices: Mapping[str, str] = MappingProxyType({}),
        vae_tile: Size | None = None,
    ) -> None:
        """`open_engine` opens the engine of a component for a batch, by default the bundle's own.

        With a limit, engines are opened in turn as far as it asks for that: see engines.py. `cache` is a folder to keep
        them in as they are opened: see cache.py. `devices` by component, where they are not to run where the target
        says. With `vae_tile`, another of the bundle's sizes, the VAE works on tiles of that: see tiles.py.
        """
        self.bundle, self._cache, self._devices = bundle, cache, devices
        manifest = bundle.manifest
        self.size = _chosen(size, manifest.sizes)
        self.vae_tile = _chosen_tile(vae_tile, self.size, manifest.sizes)
        latent = manifest.components["vae_decoder"].input_shape("latent_sample")
        self.latent_shape = resolve(latent, dimensions(self.size, manifest.vae_scale_factor))
        self._tokenizer = ClipTokenizer(bundle.path / "tokenizer", manifest.max_tokens)
        self._segments = {name: () if open_engine else segments_of(bundle, name) for name in manifest.components}
        self._frugal = memory_limit_bytes is not None
        self._engines = EnginePool(
            (lambda key: open_engine(key[0], key[1])) if open_engine else self._open_own, memory_limit_bytes
        )
        self._contexts: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, Feeds] = {}
        self._times: dict[float, Feeds] = {}

    def engine(self, component: str, batch: int = 1) -> Engine:
        """The engine of a component, loaded on first use; only the UNet's takes a batch of more than 1."""
        if segments := self._segments[component]:
            return SegmentedEngine(
                segments, lambda segment: nullcontext(self._engines.get((component, batch, segment.engine)))
            )
        return self._engines.get((component, batch, ""))

    def open_component(self, component: str) -> None:
        """Open all engines of a component, for every number of pictures that it is run with."""
        batches = {1, self.bundle.manifest.batch if component == "unet" else 1}
        for batch in sorted(batches):
            for segment in self._segments[component] or (None,):
                self._engines.get((component, batch, segment.engine if segment else ""))

    def _files(self, key: EngineKey) -> EngineFiles:
        component, _, engine = key
        segment = next((one for one in self._segments[component] if one.engine == engine), None)
        return engine_files(self.bundle, component, segment)

    def _open_own(self, key: EngineKey) -> Engine:
        component, batch, segment = key
        manifest = self.bundle.manifest
        backend, files = backend_for(manifest.target), self._files(key)
        cache = engine_cache(self._cache, self.bundle, files.engine, backend.version())
        with files.complete(cache) as file:
            return backend.load(
                file,
                Loading(
                    compute=manifest.recipe.compute,
                    inputs=() if segment else manifest.components[component].inputs,
                    sides=self._sides(component, batch),
                    frugal=self._frugal,
                    cache=cache,
                    device=device_of(self._devices, component),
                ),
            )

    def engine_file(self, component: str) -> AbstractContextManager[Path]:
        """An engine beside all of its weights, for as long as it takes to load it."""
        return engine_files(self.bundle, component).complete()

    def _run(self, component: str, feeds: Mapping[str, Array], output: str) -> Array:
        return self._run_each(component, [feeds], [output])[0][output]

    def _run_each(self, component: str, several: Sequence[Mapping[str, Array]], outputs: Sequence[str]) -> list[Feeds]:
        """The outputs of an engine for each of several feeds, in one call of it where it takes so many at once."""
        batched = [spec.name for spec in self.bundle.manifest.components[component].inputs if "batch" in spec.shape[:1]]
        together = bool(batched) and len(several) == self.bundle.manifest.batch > 1
        engine = self.engine(component, len(several) if together else 1)
        try:
            if together:
                stacked = {name: np.concatenate([feeds[name] for feeds in several]) for name in batched}
                made = engine.run({**several[0], **stacked})
                split = {name: np.split(made[name], len(several)) for name in outputs}
                return [{name: split[name][number] for name in outputs} for number in range(len(several))]
            each = engine.run_each(several) if isinstance(engine, SegmentedEngine) else map(engine.run, several)
            return [{name: one[name] for name in outputs} for one in each]
        except (MemoryError, BundleError):
            raise
        except Exception as error:  # each package raises types of its own
            message = f"the engine of {component} does not run as the manifest says: {error}"
            raise BundleError(message, hint=REBUILD) from error

    def close(self) -> None:
        """Unload the engines; the next use loads them again."""
        self._engines.close()

    def encode_prompt(self, prompt: str) -> NDArray[Any]:
        """The text encoder's output for a prompt, (1, tokens, width); remembered for the next time."""
        if prompt in self._contexts:
            return self._contexts[prompt]
        limit = self._tokenizer.max_tokens - 2
        if (count := self._tokenizer.count(prompt)) > limit:
            warnings.warn(
                f"the prompt has {count} tokens, the model takes {limit}: the last {count - limit} are left out",
                PromptTruncatedWarning,
                stacklevel=2,
            )
        feeds = {"input_ids": self._tokenizer.encode(prompt)}
        return _remember(self._contexts, prompt, self._run("text_encoder", feeds, "last_hidden_state"), PROMPTS_KEPT)

    def text_feeds(self, prompt: str) -> Feeds:
        """What the UNet takes for a prompt, by input; of a hoisted UNet remembered for the next time."""
        if prompt in self._texts:
            return self._texts[prompt]
        feeds = {HOISTED_INPUTS["unet_text"]: self.encode_prompt(prompt)}
        if not self.bundle.manifest.is_hoisted:
            return feeds
        return _remember(self._texts, prompt, self._run_part("unet_text", feeds), PROMPTS_KEPT)

    def time_feeds(self, timestep: float) -> Feeds:
        """What the UNet takes for a timestep, by input; of a hoisted UNet remembered for the next time."""
        if timestep in self._times:
            return self._times[timestep]
        feeds = {HOISTED_INPUTS["unet_time"]: np.array([timestep], np.float32)}
        if not self.bundle.manifest.is_hoisted:
            return feeds
        return _remember(self._times, timestep, self._run_part("unet_time", feeds), TIMESTEPS_KEPT)

    def _run_part(self, component: str, feeds: Feeds) -> Feeds:
        outputs = [spec.name for spec in self.bundle.manifest.components[component].outputs]
        return self._run_each(component, [feeds], outputs)[0]

    def encode_image(self, image: NDArray[np.float32], noise: Latents | None = None) -> Latents:
        """Scaled latents of an image (h, w, 3) in -1..1; the distribution's mean, or a sample with `noise`."""
        sample = image.transpose(2, 0, 1)[None].astype(np.float32)
        parameters = self._run_vae("vae_encoder", "sample", sample, "latent_parameters")
        mean, log_variance = np.split(parameters, 2, axis=1)
        if noise is not None:
            mean = mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * noise
        scaled: Latents = mean * np.float32(self.bundle.manifest.latent_scale)
        return scaled

    def _run_vae(self, component: str, source: str, given: Latents, output: str) -> Latents:
        """One of the VAE's engines on the whole picture, or on tiles of it."""

        def run(part: Latents) -> Latents:
            return self._run(component, {source: part}, output)

        if self.vae_tile is None:
            return run(given)
        spec = self.bundle.manifest.components[component].input_shape(source)
        _, _, height, width = resolve(spec, self._sides(component, 1))
        return in_tiles(given, run, (height, width), self.bundle.manifest.vae_scale_factor if source == "sample" else 1)

    def _sides(self, component: str, batch: int) -> dict[str, int]:
        """The numbers of an engine's named dimensions."""
        size = self.vae_tile if self.vae_tile and component.startswith("vae_") else self.size
        return dimensions(size, self.bundle.manifest.vae_scale_factor, batch)

    def decode(self, latents: Latents) -> Picture:
        """The picture (h, w, 3) of scaled latents."""
        unscaled = latents / np.float32(self.bundle.manifest.latent_scale)
        image = self._run_vae("vae_decoder", "latent_sample", unscaled, "sample")[0]
        picture: Picture = np.rint(np.clip(image.transpose(1, 2, 0) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
        return picture

    def noise(self, seed: int | tuple[int, ...]) -> Latents:
        """Unit noise in the shape of the latents."""
        return np.random.default_rng(seed).standard_normal(self.latent_shape, np.float32)

    def paint(
        self,
        picture: Picture,
        mask: NDArray[np.bool_],
        prompt: str,
        painting: Painting,
        index: int = 0,
        noise: Latents | None = None,
        image_noise: Latents | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Picture:
        """Paint where `mask` (h, w) is True; the whole decoded picture (h, w, 3), the known part too.

        The painting starts from `noise`, by default drawn from the seed and `index`, which tells the pictures
        of one run apart. `image_noise` samples the known picture's latents instead of taking their mean.
        `on_step` is called after each UNet step.
        """
        if picture.shape[:2] != mask.shape or mask.shape != self.size[::-1]:
            raise ValueError(f"picture {picture.shape} and mask {mask.shape} must be {self.size[::-1]}")
        scheduler = painting.make_scheduler(self.bundle.manifest.scheduler)
        schedule = painting.schedule(len(scheduler.timesteps))
        if painting.whole_every > 1 and not self.bundle.manifest.has_shallow_unet:
            raise UserError(
                f"the bundle '{self.bundle.path}' has no shallow UNet for the steps between",
                hint="build it with export-all --shallow 1, or run the whole UNet in every step",
            )
        noise = self.noise((painting.seed, index)) if noise is None else noise
        known = np.where(mask[..., None], np.float32(0), _levels(picture))
        known_latents = self.encode_image(known, image_noise)
        cells = latent_mask(mask, self.bundle.manifest.vae_scale_factor)
        extra = np.concatenate([cells, known_latents], axis=1)
        if schedule.calls.start == 0:
            latents = noise * np.float32(scheduler.init_noise_sigma)
        else:
            clean = self.encode_image(_levels(extended(picture, mask)))
            latents = scheduler.add_noise(clean, noise, schedule.calls.start)
        guides = painting.guidance > 1 and not self.bundle.manifest.takes_guidance
        prompts = [prompt, painting.negative_prompt] if guides else [prompt]
        texts = [self.text_feeds(words) for words in prompts]
        times = {call: self.time_feeds(float(scheduler.timesteps[call])) for call in schedule.calls}
        # what those for the prompt and the timesteps made is kept; their weights need not be
        self._engines.close(keep=lambda key: key[0] not in ("text_encoder", *HOISTED_INPUTS))
        self._engines.rest()
        denoiser = Denoiser(self.bundle, self._run_each, texts, painting.guidance, schedule)
        fresh = np.random.default_rng((painting.seed, index, 1))
        for call, time in times.items():
            sample = np.concatenate([scheduler.scale_model_input(latents, call), extra], axis=1)
            output = denoiser.predict(sample, time, call)
            more = fresh.standard_normal(latents.shape, np.float32) if scheduler.needs_noise else None
            latents = scheduler.step(output, call, latents, more)
            if painting.blend:
                last = call == schedule.calls[-1]
                there = known_latents if last else scheduler.add_noise(known_latents, noise, call + 1)
                latents = cells * latents + (1 - cells) * there
            if on_step:
                on_step()
        self._engines.rest()
        return self.decode(latents)


def _chosen(size: Size | None, sizes: tuple[Size, ...]) -> Size:
    if size is not None and size not in sizes:
        shown = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise UserError(f"the bundle does not paint {size[0]}x{size[1]}; it paints {shown}", hint=REBUILD)
    return size or sizes[0]


def _chosen_tile(tile: Size | None, size: Size, sizes: tuple[Size, ...]) -> Size | None:
    if tile is None or tile == size:
        return None
    fitting = [one for one in sizes if one != size and one[0] <= size[0] and one[1] <= size[1]]
    if tile not in fitting:
        shown = ", ".join(f"{width}x{height}" for width, height in fitting) or "none"
        raise UserError(
            f"the VAE can't work on tiles of {tile[0]}x{tile[1]}; of this bundle's sizes these fit: {shown}",
            hint="build it with that --size, too",
        )
    return tile


def _levels(picture: Picture) -> NDArray[np.float32]:
    """The colours of a picture (h, w, 3), -1 to 1."""
    return picture.astype(np.float32) / np.float32(127.5) - 1


def latent_mask(mask: NDArray[np.bool_], cell: int) -> Latents:
    """(1, 1, h / cell, w / cell): 1 where any pixel of the latent cell is to be painted."""
    height, width = mask.shape
    cells = mask.reshape(1, 1, height // cell, cell, width // cell, cell).max(axis=(3, 5))
    return np.asarray(cells, np.float32)


def _remember(memory: dict[Key, Made], key: Key, made: Made, limit: int) -> Made:
    """Keep what was made, and forget the oldest of more than `limit`."""
    memory[key] = made
    if len(memory) > limit:
        del memory[next(iter(memory))]
    return made
