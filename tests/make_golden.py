"""Write the golden keyframe again after the demo model was retrained: python tests/make_golden.py BUNDLE."""

import sys
from pathlib import Path

from outzoom.runtime import Painting, Zoom, load_image, open_bundle, save_png

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "keyframe.png"
PICTURE = ROOT / "models" / "demo" / "picture.png"
PROMPT = "an underwater reef with red fish and red corals"


def paint_keyframe(zoom: Zoom):
    """The demo picture's first painted keyframe, from few steps so that tests stay quick."""
    keyframes = zoom.keyframes(load_image(PICTURE, zoom.size), PROMPT, 0.5, Painting(steps=8, guidance=3.0, seed=7))
    next(keyframes)
    return next(keyframes)


if __name__ == "__main__":
    save_png(paint_keyframe(open_bundle(sys.argv[1])), GOLDEN)
