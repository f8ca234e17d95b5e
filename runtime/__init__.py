"""What runs on the device: bundles, engines, schedulers, the inpainting pipeline and the zoom loop. No torch."""

from .bundle import Bundle, open_manifest
from .errors import BundleError, MissingPackageError, OutzoomError, UserError
from .governor import Limits
from .images import film_strip, load_image, save_png
from .inpainting import Inpainting, Painting, PromptTruncatedWarning
from .live import LiveStatus, LiveZoom
from .operating_points import presets_from
from .presets import PRESETS, preset
from .video import VideoWriter
from .zoom import Motion, Zoom, open_bundle

__all__ = [
    "PRESETS",
    "Bundle",
    "BundleError",
    "Inpainting",
    "Limits",
    "LiveStatus",
    "LiveZoom",
    "MissingPackageError",
    "Motion",
    "OutzoomError",
    "Painting",
    "PromptTruncatedWarning",
    "UserError",
    "VideoWriter",
    "Zoom",
    "film_strip",
    "load_image",
    "open_bundle",
    "open_manifest",
    "preset",
    "presets_from",
    "save_png",
]
