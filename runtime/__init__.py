"""What runs on the device: bundles, engines, schedulers, the inpainting pipeline and the zoom loop. No torch."""

from .audio import AudioTrack, AudioWarning
from .bundle import Bundle, open_manifest
from .errors import BundleError, MissingPackageError, OutzoomError, UserError
from .images import film_strip, load_image, save_png
from .inpainting import Inpainting, Painting, PromptTruncatedWarning
from .video import VideoWriter
from .video_reader import DamagedVideoWarning, VideoReader
from .video_zoom import Surround, VideoZoom
from .zoom import Motion, Zoom, open_bundle

__all__ = [
    "AudioTrack",
    "AudioWarning",
    "Bundle",
    "BundleError",
    "DamagedVideoWarning",
    "Inpainting",
    "MissingPackageError",
    "Motion",
    "OutzoomError",
    "Painting",
    "PromptTruncatedWarning",
    "Surround",
    "UserError",
    "VideoReader",
    "VideoWriter",
    "VideoZoom",
    "Zoom",
    "film_strip",
    "load_image",
    "open_bundle",
    "open_manifest",
    "save_png",
]
