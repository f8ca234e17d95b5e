"""Ways to paint a keyframe, from the most exact to the quickest; docs/painting.md has what each costs and gains."""

from __future__ import annotations

from .errors import unknown_name
from .inpainting import Painting

PRESETS = {
    "quality": Painting(),
    "balanced": Painting(steps=10, scheduler="dpm-solver"),
    "fast": Painting(steps=10, scheduler="dpm-solver", guided=(0.0, 0.6), whole_every=2),
}


def preset(name: str) -> Painting:
    """The preset of a name; raises UserError with the nearest one for a name that does not exist."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
