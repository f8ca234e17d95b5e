"""One picture's run of the UNet: guided or not, whole or shallow, as the painting says of each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backends import Array
from .bundle import DEEP_FEATURES, SHALLOW_UNET, Bundle
from .schedulers.protocol import Array as Latents

Feeds = dict[str, Array]
Run = Callable[[str, Mapping[str, Array], Sequence[str], int], Feeds]
SAMPLE, PREDICTION = "sample", "out_sample"


@dataclass(frozen=True)
class Schedule:
    """What is done at each of a number of calls: which are guided, and which run the whole UNet.

    `guided` is the part of the calls that are, from 0 to 1. Calls in between those of the whole UNet take the deep
    features of the last such.

    Sources: Kynkäänniemi et al., "Applying Guidance in a Limited Interval", arXiv 2404.07724; Ma et al., "DeepCache",
    arXiv 2312.00858.
    """

    calls: range
    guided: tuple[float, float] = (0.0, 1.0)
    whole_every: int = 1

    def is_guided(self, call: int) -> bool:
        """Whether the middle of the call lies in the guided part."""
        middle = (call - self.calls.start + 0.5) / len(self.calls)
        return self.guided[0] <= middle <= self.guided[1]

    def is_whole(self, call: int) -> bool:
        """Whether the call makes deep features of its own."""
        return (call - self.calls.start) % self.whole_every == 0


@dataclass
class Denoiser:
    """Predicts with the UNet of a bundle for one picture; `run` runs an engine: component, feeds, outputs, batch.

    `texts` are what the UNet takes for the prompt and, if there is guidance, for what to keep away from.
    """

    bundle: Bundle
    run: Run
    texts: Sequence[Feeds]
    guidance: float
    schedule: Schedule
    _deep: dict[int, Array] = field(default_factory=dict)  # by text

    def predict(self, sample: Latents, time: Feeds, call: int) -> Latents:
        """The first text's prediction, guided away from the second one's where the call is guided."""
        numbers = range(len(self.texts)) if self.schedule.is_guided(call) else range(1)
        whole = self.schedule.is_whole(call) or any(number not in self._deep for number in numbers)
        together = len(numbers) == self.bundle.manifest.batch
        groups = [list(numbers)] if together else [[number] for number in numbers]
        conditional, *unconditional = [one for group in groups for one in self._run(sample, time, group, whole)]
        if not unconditional:
            return conditional
        guided: Latents = unconditional[0] + np.float32(self.guidance) * (conditional - unconditional[0])
        return guided

    def _run(self, sample: Latents, time: Feeds, numbers: Sequence[int], whole: bool) -> list[Latents]:
        """The predictions for some of the texts, in one call of the UNet."""
        texts = [self.texts[number] for number in numbers]
        feeds = {name: _stacked([text[name] for text in texts]) for name in texts[0]}
        feeds |= {SAMPLE: _stacked([sample] * len(numbers)), **time}
        caches = self.bundle.manifest.has_shallow_unet and self.schedule.whole_every > 1
        if whole:
            made = self.run("unet", feeds, [PREDICTION, *([DEEP_FEATURES] if caches else [])], len(numbers))
            if caches:
                self._deep |= dict(zip(numbers, np.split(made[DEEP_FEATURES], len(numbers)), strict=True))
        else:
            feeds[DEEP_FEATURES] = _stacked([self._deep[number] for number in numbers])
            taken = [spec.name for spec in self.bundle.manifest.components[SHALLOW_UNET].inputs]
            made = self.run(SHALLOW_UNET, {name: feeds[name] for name in taken}, [PREDICTION], len(numbers))
        return list(np.split(made[PREDICTION], len(numbers)))


def _stacked(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
