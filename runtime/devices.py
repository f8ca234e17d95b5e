"""Where engines run: the devices of a command line, one for all components or one for each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .bundle import COMPONENTS, HOISTED_INPUTS, SHALLOW_UNET
from .errors import UserError, unknown_name

NAMED = re.compile(r"(?:^|,)([A-Za-z_]+)=")
HINT = "for example --device GPU, or --device unet=NPU,vae_decoder=GPU"


def parse_devices(text: str) -> dict[str, str]:
    """The device of each component that `text` names; raises UserError for one that can't be read.

    >>> parse_devices("unet=HETERO:NPU,CPU,vae_decoder=GPU")
    {'unet': 'HETERO:NPU,CPU', 'vae_decoder': 'GPU'}
    >>> parse_devices("AUTO")["unet"]
    'AUTO'
    """
    names = list(NAMED.finditer(text))
    if not names:
        if not text.strip() or "=" in text:
            raise UserError(f"--device names no device: '{text}'", hint=HINT)
        return dict.fromkeys(COMPONENTS, text.strip())
    if names[0].start() != 0:
        raise UserError(f"--device has a device without a component: '{text}'", hint=HINT)
    ends = [one.start() for one in names[1:]] + [len(text)]
    found: dict[str, str] = {}
    for one, end in zip(names, ends, strict=True):
        component, device = one[1], text[one.end() : end].strip()
        if component not in COMPONENTS:
            raise unknown_name("component", component, COMPONENTS)
        if component in found or not device:
            raise UserError(f"--device needs one device for {component}: '{text}'", hint=HINT)
        found[component] = device
    return found


def device_of(devices: Mapping[str, str], component: str) -> str | None:
    """Where a component's engine runs; parts of the UNet where the UNet does. None: where the target says."""
    whole = "unet" if component in (SHALLOW_UNET, *HOISTED_INPUTS) else component
    return devices.get(whole)
