"""Stable Diffusion inpainting on compiled engines: paint the masked part of a picture from a prompt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backends import Array, Engine, backend_for
from .bundle import HOISTED_INPUTS, REBUILD, Bundle
from .errors import BundleError, UserError
from .packed import unpacked
from .schedulers import Scheduler, default_scheduler, make_scheduler
from .shapes import Size, dimensions, resolve
from .tokenizer import ClipTokenizer

Latents = NDArray[np.float32]
Picture = NDArray[np.uint8]
Feeds = dict[str, Array]
OpenEngine = Callable[[str, int], Engine]
Key = TypeVar("Key")
Made = TypeVar("Made")
MAX_GUIDANCE = 100.0
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

    def __post_init__(self) -> None:
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise UserError(f"guidance must be 0 to {MAX_GUIDANCE:g}, got {self.guidance}", hint="7.5 is usual")
        if not 0 <= self.seed < 2**64:
            raise UserError(f"the seed must be 0 to 2**64 - 1, got {self.seed}")

    def make_scheduler(self, config: dict[str, Any]) -> Scheduler:
        """A scheduler for one run; raises UserError for an unknown name or a number of steps it can't do."""
        return make_scheduler(self.scheduler or default_scheduler(config), config, self.steps)


class Inpainting:
    """The engines of a bundle, loaded when first needed, chained into the inpainting pipeline.

    Source: Rombach et al. 2022 (latent diffusion, inpainting by concatenation of mask and masked latents);
    Ho and Salimans 2022 (classifier-free guidance).
    """

    def __init__(self, bundle: Bundle, size: Size | None = None, open_engine: OpenEngine | None = None) -> None:
        """`open_engine` opens the engine of a component for a batch, by default the bundle's own."""
        self.bundle, self._open = bundle, open_engine or self._open_own
        manifest = bundle.manifest
        self.size = _chosen(size, manifest.sizes)
        latent = manifest.components["vae_decoder"].input_shape("latent_sample")
        self.latent_shape = resolve(latent, dimensions(self.size, manifest.vae_scale_factor))
        self._tokenizer = ClipTokenizer(bundle.path / "tokenizer", manifest.max_tokens)
        self._engines: dict[tuple[str, int], Engine] = {}
        self._contexts: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, Feeds] = {}
        self._times: dict[float, Feeds] = {}

    def engine(self, component: str, batch: int = 1) -> Engine:
        """The engine of a component, loaded on first use; only the UNet's takes a batch of more than 1."""
        if (component, batch) not in self._engines:
            self._engines[component, batch] = self._open(component, batch)
        return self._engines[component, batch]

    def _open_own(self, component: str, batch: int) -> Engine:
        manifest = self.bundle.manifest
        with self.engine_file(component) as file:
            return backend_for(manifest.target).load(
                file, manifest.recipe.compute, manifest.components[component].inputs,
                dimensions(self.size, manifest.vae_scale_factor, batch),
            )  # fmt: skip

    def engine_file(self, component: str) -> AbstractContextManager[Path]:
        """An engine beside all of its weights, for as long as it takes to load it."""
        file, packed = self.bundle.engine(component), self.bundle.manifest.components[component].packed
        return nullcontext(file) if packed is None else unpacked(file, self.bundle.file(packed))

    def _run(self, component: str, feeds: Mapping[str, Array], output: str, batch: int = 1) -> Array:
        return self._run_all(component, feeds, [output], batch)[output]

    def _run_all(self, component: str, feeds: Mapping[str, Array], outputs: Iterable[str], batch: int = 1) -> Feeds:
        engine = self.engine(component, batch)
        try:
            made = engine.run(feeds)
            return {name: made[name] for name in outputs}
        except MemoryError:
            raise
        except Exception as error:  # each package raises types of its own
            message = f"the engine of {component} does not run as the manifest says: {error}"
            raise BundleError(message, hint=REBUILD) from error

    def close(self) -> None:
        """Unload the engines; the next use loads them again."""
        self._unload({component for component, _ in self._engines})

    def _unload(self, components: Collection[str]) -> None:
        for key in [key for key in self._engines if key[0] in components]:
            self._engines.pop(key).close()

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
        return self._run_all(
            component, feeds, [spec.name for spec in self.bundle.manifest.components[component].outputs]
        )

    def encode_image(self, image: NDArray[np.float32], noise: Latents | None = None) -> Latents:
        """Scaled latents of an image (1, 3, h, w) in -1..1; the distribution's mean, or a sample with `noise`."""
        parameters = self._run("vae_encoder", {"sample": image}, "latent_parameters")
        mean, log_variance = np.split(parameters, 2, axis=1)
        if noise is not None:
            mean = mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * noise
        scaled: Latents = mean * np.float32(self.bundle.manifest.latent_scale)
        return scaled

    def decode(self, latents: Latents) -> Picture:
        """The picture (h, w, 3) of scaled latents."""
        unscaled = latents / np.float32(self.bundle.manifest.latent_scale)
        image = self._run("vae_decoder", {"latent_sample": unscaled}, "sample")[0]
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
        latents = self.noise((painting.seed, index)) if noise is None else noise
        latents = latents * np.float32(scheduler.init_noise_sigma)
        known = np.where(mask[..., None], np.float32(0), picture.astype(np.float32) / 127.5 - 1)
        known_latents = self.encode_image(known.transpose(2, 0, 1)[None].astype(np.float32), image_noise)
        extra = np.concatenate([latent_mask(mask, self.bundle.manifest.vae_scale_factor), known_latents], axis=1)
        prompts = [prompt, painting.negative_prompt] if painting.guidance > 1 else [prompt]
        texts = [self.text_feeds(words) for words in prompts]
        times = [self.time_feeds(float(timestep)) for timestep in scheduler.timesteps]
        self._unload(HOISTED_INPUTS)  # what they made is kept; their weights need not be
        fresh = np.random.default_rng((painting.seed, index, 1))
        for call, time in enumerate(times):
            sample = np.concatenate([scheduler.scale_model_input(latents, call), extra], axis=1)
            output = self._predict(sample, texts, time, painting.guidance)
            more = fresh.standard_normal(latents.shape, np.float32) if scheduler.needs_noise else None
            latents = scheduler.step(output, call, latents, more)
            if on_step:
                on_step()
        return self.decode(latents)

    def _predict(self, sample: Latents, texts: Sequence[Feeds], time: Feeds, guidance: float) -> Latents:
        """With one text its prediction, with two the first one's, guided away from the second one's."""
        if len(texts) == 2 and self.bundle.manifest.batch == 2:
            both = {name: np.concatenate([text[name] for text in texts]) for name in texts[0]}
            feeds = {"sample": np.repeat(sample, 2, axis=0), **both, **time}
            conditional, *unconditional = np.split(self._run("unet", feeds, "out_sample", batch=2), 2)
        else:
            conditional, *unconditional = (
                self._run("unet", {"sample": sample, **text, **time}, "out_sample") for text in texts
            )
        if not unconditional:
            return conditional
        guided: Latents = unconditional[0] + np.float32(guidance) * (conditional - unconditional[0])
        return guided


def _chosen(size: Size | None, sizes: tuple[Size, ...]) -> Size:
    if size is not None and size not in sizes:
        shown = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise UserError(f"the bundle does not paint {size[0]}x{size[1]}; it paints {shown}", hint=REBUILD)
    return size or sizes[0]


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
