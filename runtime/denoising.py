"""One picture's run of the UNet: guided or not, whole or shallow, as the painting says of each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backends import Array
from .bundle import DEEP_FEATURES, GUIDANCE, SHALLOW_UNET, Bundle
from .schedulers.protocol import Array as Latents

Feeds = dict[str, Array]
RunEach = Callable[[str, Sequence[Feeds], Sequence[str]], list[Feeds]]
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
    """Predicts with the UNet of a bundle for one picture; `run` is given a component, several feeds, and the outputs.

    `texts` are what the UNet takes for the prompt and, if there is guidance, for what to keep away from.
    """

    bundle: Bundle
    run: RunEach
    texts: Sequence[Feeds]
    guidance: float
    schedule: Schedule
    _deep: dict[int, Array] = field(default_factory=dict)  # by text

    def predict(self, sample: Latents, time: Feeds, call: int) -> Latents:
        """The first text's prediction, guided away from the second one's where the call is guided."""
        numbers = range(len(self.texts)) if self.schedule.is_guided(call) else range(1)
        whole = self.schedule.is_whole(call) or any(number not in self._deep for number in numbers)
        if self.bundle.manifest.takes_guidance:
            time = {**time, GUIDANCE: np.array([self.guidance], np.float32)}
        feeds = [{SAMPLE: sample, **self.texts[number], **time} for number in numbers]
        if whole:
            caches = self.bundle.manifest.has_shallow_unet and self.schedule.whole_every > 1
            made = self.run("unet", feeds, [PREDICTION, *([DEEP_FEATURES] if caches else [])])
            self._deep |= {number: one[DEEP_FEATURES] for number, one in zip(numbers, made, strict=True) if caches}
        else:
            taken = [spec.name for spec in self.bundle.manifest.components[SHALLOW_UNET].inputs]
            feeds = [{**one, DEEP_FEATURES: self._deep[number]} for number, one in zip(numbers, feeds, strict=True)]
            made = self.run(SHALLOW_UNET, [{name: one[name] for name in taken} for one in feeds], [PREDICTION])
        conditional, *unconditional = (one[PREDICTION] for one in made)
        if not unconditional:
            return conditional
        guided: Latents = unconditional[0] + np.float32(self.guidance) * (conditional - unconditional[0])
        return guided
