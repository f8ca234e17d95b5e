"""Render the picture that the demo zooms out of: a scene that training never saw."""

from pathlib import Path

from PIL import Image

import scenes

if __name__ == "__main__":
    picture, caption = scenes.render("reef", 1_000_001, scenes.Window(0.1, 0.25, 0.75), size=512)
    Image.fromarray(picture).save(Path(__file__).parent / "demo" / "picture.png", optimize=True)
    print(caption)
