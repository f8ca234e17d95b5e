"""What runs on the device: bundles, engines, schedulers, the inpainting pipeline and the zoom loop. No torch."""

from .audio import AudioTrack, AudioWarning
from .bundle import Bundle, open_manifest
from .compiling import Compiled, compile_bundle
from .course import Course
from .devices import parse_devices
from .errors import BundleError, MissingPackageError, OutzoomError, UserError
from .film import Film, film_frames, open_keyframes
from .governor import Limits
from .images import film_strip, load_image, save_png
from .inpainting import Inpainting, Painting, PromptTruncatedWarning
from .keyframes import KeyframeFolder, remove_keyframes
from .live import LiveStatus, LiveZoom
from .operating_points import presets_from
from .presets import PRESETS, preset
from .prompts import PicturesIgnoredWarning, Prompts, read_prompts
from .video import VideoWriter
from .video_reader import DamagedVideoWarning, VideoReader
from .video_zoom import Surround, VideoZoom
from .zoom import Motion, Zoom, open_bundle

__all__ = [
    "PRESETS",
    "AudioTrack",
    "AudioWarning",
    "Bundle",
    "BundleError",
    "Compiled",
    "Course",
    "DamagedVideoWarning",
    "Film",
    "Inpainting",
    "KeyframeFolder",
    "Limits",
    "LiveStatus",
    "LiveZoom",
    "MissingPackageError",
    "Motion",
    "OutzoomError",
    "Painting",
    "PicturesIgnoredWarning",
    "PromptTruncatedWarning",
    "Prompts",
    "Surround",
    "UserError",
    "VideoReader",
    "VideoWriter",
    "VideoZoom",
    "Zoom",
    "compile_bundle",
    "film_frames",
    "film_strip",
    "load_image",
    "open_bundle",
    "open_keyframes",
    "open_manifest",
    "parse_devices",
    "preset",
    "presets_from",
    "read_prompts",
    "remove_keyframes",
    "save_png",
]
