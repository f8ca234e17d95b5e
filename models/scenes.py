"""Captioned scenes, painted procedurally: what the demo model learns from and is tested on.

A scene is a *world* of coloured shapes in coordinates that reach from -WORLD to +WORLD on both axes (y points
down, the horizon is near 0); a *window* is the square part of it that a picture shows. Widening the window
is a true zoom-out, so every picture of a wider window is the ground truth for a picture's border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WORLD = 3.0
SUPERSAMPLING = 2

Colour = tuple[int, int, int]
Rng = np.random.Generator
Points = list[tuple[float, float]]
Scatter = Callable[[Rng, int, float, float], Points]

COLOURS: dict[str, Colour] = {
    "red": (214, 58, 48),
    "orange": (240, 140, 40),
    "yellow": (245, 205, 60),
    "pink": (236, 120, 170),
    "purple": (140, 80, 190),
    "blue": (60, 110, 215),
    "white": (240, 240, 235),
    "brown": (140, 90, 60),
}


@dataclass(frozen=True)
class Window:
    """The square part of the world that a picture shows: its centre and half its side, in world units."""

    x: float = 0.0
    y: float = 0.0
    half: float = 1.0

    def widened(self, factor: float) -> Window:
        """The window with the same centre and a side `factor` times as long."""
        return Window(self.x, self.y, self.half * factor)


class Canvas:
    """Draws shapes given in world coordinates onto the picture of a window."""

    def __init__(self, window: Window, size: int, scatter: Scatter) -> None:
        self.side = size * SUPERSAMPLING
        self.window, self.scatter = window, scatter
        self.per_unit = self.side / (2 * window.half)
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """World x of the pixel columns, shape (1, side), and world y of the rows, shape (side, 1)."""
        offsets = (np.arange(self.side) + 0.5) / self.per_unit - self.window.half
        x, y = (self.window.x + offsets)[None, :], (self.window.y + offsets)[:, None]
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    def paint(self, rgb: NDArray[np.float64]) -> None:
        """Replace the whole picture by `rgb` of shape (side, side, 3), values 0 to 255."""
        self.image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel position of a world point."""
        w = self.window
        return (x - w.x + w.half) * self.per_unit, (y - w.y + w.half) * self.per_unit

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon."""
        self.draw.polygon([self.at(x, y) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fill an axis-parallel ellipse around (x, y); at least half a pixel, so that stars stay visible."""
        px, py = self.at(x, y)
        a, b = max(rx * self.per_unit, 0.5), max(ry * self.per_unit, 0.5)
        self.draw.ellipse((px - a, py - b, px + a, py + b), fill=colour)

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        """Stroke a polyline, `width` in world units."""
        pixels = max(1, round(width * self.per_unit))
        self.draw.line([self.at(x, y) for x, y in points], fill=colour, width=pixels, joint="curve")

    def picture(self) -> NDArray[np.uint8]:
        """The finished picture, (size, size, 3)."""
        return np.asarray(self.image.reduce(SUPERSAMPLING))


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` made darker (factor < 1) or lighter (factor > 1)."""
    r, g, b = (min(255, max(0, round(c * factor))) for c in colour)
    return r, g, b


def mix(a: Colour, b: Colour, fraction: float) -> Colour:
    """The colour `fraction` of the way from a to b."""
    r, g, z = (round(p + (q - p) * fraction) for p, q in zip(a, b, strict=True))
    return r, g, z


def gradient(canvas: Canvas, stops: list[tuple[float, Colour]]) -> NDArray[np.float64]:
    """A vertical colour gradient through (world y, colour) stops, as (side, side, 3)."""
    _, y = canvas.axes()
    heights = [s[0] for s in stops]
    column = np.stack([np.interp(y[:, 0], heights, [s[1][c] for s in stops]) for c in range(3)], -1)
    return np.repeat(column[:, None, :], canvas.side, axis=1)


def ridge(rng: Rng, base: float, height: float, roughness: float) -> list[tuple[float, float]]:
    """A closed skyline polygon across the world around y = base, down to the bottom of the world."""
    x = np.linspace(-WORLD - 0.5, WORLD + 0.5, 60)
    y = np.full_like(x, base)
    for octave in range(4):
        frequency = 0.6 * 2**octave * rng.uniform(0.8, 1.2)
        y = y - height * roughness**octave * np.sin(frequency * x * 2 + rng.uniform(0, 6.28)) / 2
    line = list(zip(x.tolist(), y.tolist(), strict=True))
    return [*line, (WORLD + 0.5, WORLD + 0.5), (-WORLD - 0.5, WORLD + 0.5)]


def pick(rng: Rng, names: tuple[str, ...]) -> str:
    """One of `names`, at random."""
    return names[int(rng.integers(len(names)))]


def tree(canvas: Canvas, x: float, ground: float, height: float, leaf: Colour, pine: bool) -> None:
    """A pine of three tiers, or a round-topped tree."""
    trunk = (96, 66, 44)
    canvas.polygon(
        [(x - 0.05 * height, ground), (x + 0.05 * height, ground), (x, ground - 0.7 * height)],
        shade(trunk, 0.6) if pine else trunk,
    )
    if pine:
        for tier in range(3):
            top, half = ground - height * (1 - 0.22 * tier), height * (0.16 + 0.09 * tier)
            foot = ground - height * (0.55 - 0.2 * tier)
            canvas.polygon([(x, top), (x - half, foot), (x + half, foot)], shade(leaf, 1 - 0.08 * tier))
        return
    for dx, dy, r in ((-0.22, 0.62, 0.24), (0.22, 0.62, 0.24), (0.0, 0.8, 0.3)):
        canvas.ellipse(x + dx * height, ground - dy * height, r * height, r * height, shade(leaf, 0.85 + r))


def cloud(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """A cloud of five puffs."""
    for dx, dy, r in ((-0.9, 0.1, 0.4), (-0.4, -0.15, 0.55), (0.2, -0.2, 0.6), (0.8, 0.05, 0.45)):
        canvas.ellipse(x + dx * size, y + dy * size, r * size, r * size * 0.62, colour)
    canvas.ellipse(x, y + 0.12 * size, 1.2 * size, 0.22 * size, shade(colour, 0.96))


def fish(canvas: Canvas, x: float, y: float, size: float, colour: Colour, facing: int, striped: bool) -> None:
    """A fish seen from the side, swimming left (facing -1) or right (+1)."""
    canvas.polygon(
        [
            (x - facing * 0.75 * size, y),
            (x - facing * 1.5 * size, y - 0.5 * size),
            (x - facing * 1.5 * size, y + 0.5 * size),
        ],
        shade(colour, 0.8),
    )
    canvas.polygon([(x - 0.3 * size, y - 0.4 * size), (x + 0.3 * size, y - 0.4 * size), (x, y - 0.75 * size)],
                   shade(colour, 0.8))  # fmt: skip
    canvas.ellipse(x, y, size, 0.55 * size, colour)
    if striped:
        for dx in (-0.35, 0.15):
            canvas.ellipse(x + facing * dx * size, y, 0.1 * size, 0.46 * size, (245, 245, 240))
    canvas.ellipse(x + facing * 0.6 * size, y - 0.12 * size, 0.13 * size, 0.13 * size, (250, 250, 250))
    canvas.ellipse(x + facing * 0.63 * size, y - 0.12 * size, 0.07 * size, 0.07 * size, (15, 15, 20))


def coral(canvas: Canvas, rng: Rng, x: float, ground: float, size: float, colour: Colour) -> None:
    """A coral on the sea floor: a fan of branches, a dome, or a bundle of tubes."""
    kind = int(rng.integers(3))
    if kind == 0:
        for angle in np.linspace(-0.9, 0.9, 7):
            tip = (x + size * np.sin(angle), ground - size * 1.2 * np.cos(angle))
            middle = (x + 0.4 * size * np.sin(angle * 0.6), ground - 0.6 * size)
            canvas.line([(x, ground), middle, tip], 0.13 * size, shade(colour, 0.85 + 0.2 * abs(angle)))
            canvas.ellipse(tip[0], tip[1], 0.11 * size, 0.11 * size, shade(colour, 1.15))
    elif kind == 1:
        canvas.ellipse(x, ground, 0.8 * size, 0.7 * size, shade(colour, 0.8))
        canvas.ellipse(x - 0.1 * size, ground - 0.12 * size, 0.62 * size, 0.5 * size, colour)
    else:
        for i in range(4):
            left, top = x + (i - 1.7) * 0.32 * size, ground - size * (0.7 + 0.5 * ((i * 7) % 3) / 2)
            right = left + 0.24 * size
            canvas.polygon([(left, ground), (right, ground), (right, top), (left, top)], shade(colour, 0.9))
            canvas.ellipse((left + right) / 2, top, 0.14 * size, 0.08 * size, shade(colour, 0.55))


def weed(canvas: Canvas, rng: Rng, x: float, ground: float, height: float, colour: Colour) -> None:
    """A swaying blade of seaweed."""
    phase = rng.uniform(0, 6.28)
    points = [(x + 0.08 * height * np.sin(phase + 5 * t), ground - height * t) for t in np.linspace(0, 1, 9)]
    canvas.line(points, 0.07 * height, colour)


def scatter(rng: Rng, count: int, top: float, bottom: float) -> Points:
    """`count` points across the world between two heights, the farther (higher) first."""
    x = rng.uniform(-WORLD, WORLD, count)
    y = np.sort(rng.uniform(top, bottom, count))
    return list(zip(x.tolist(), y.tolist(), strict=True))


def scatter_elsewhere(window: Window, seed: int) -> Scatter:
    """Scatters as `scatter` does, but what lies well outside the window goes somewhere else outside, as `seed` says."""
    other = np.random.default_rng(seed)

    def is_near(x: float, y: float) -> bool:
        return max(abs(x - window.x), abs(y - window.y)) < 1.1 * window.half

    def moved(x: float, y: float) -> tuple[float, float]:
        if is_near(x, y):
            return x, y
        places = other.uniform(-WORLD, WORLD, 100).tolist()
        return next(place for place in places if not is_near(place, y)), y

    return lambda rng, count, top, bottom: [moved(x, y) for x, y in scatter(rng, count, top, bottom)]


def reef(canvas: Canvas, rng: Rng) -> str:
    """An underwater reef: light from above, fish in schools, corals and weed on sand."""
    fish_name = pick(rng, ("orange", "yellow", "red", "blue", "white"))
    coral_name = pick(rng, ("pink", "red", "purple", "orange"))
    floor = rng.uniform(0.35, 0.75)
    water = gradient(canvas, [(-2.5, (150, 225, 235)), (-0.6, (50, 150, 205)), (1.2, (14, 70, 130))])
    x, y = canvas.axes()
    rays = np.sin(2.1 * (x + 0.35 * y) + rng.uniform(0, 6.28)) * np.sin(3.7 * (x + 0.35 * y))
    water += (18 * np.maximum(rays, 0) * np.clip((1.0 - y) / 2.5, 0, 1))[..., None]
    canvas.paint(water)
    canvas.polygon(ridge(rng, floor - 0.15, 0.25, 0.5), (30, 95, 140))
    canvas.polygon(ridge(rng, floor, 0.12, 0.4), (214, 190, 140))
    canvas.polygon(ridge(rng, floor + 0.8, 0.12, 0.4), (196, 170, 122))
    for px, py in canvas.scatter(rng, 48, floor - 0.02, 2.8):
        near = 0.55 + 0.35 * (py - floor)
        if rng.random() < 0.6:
            name = coral_name if rng.random() < 0.75 else "purple"
            coral(canvas, rng, px, py, 0.26 * near * rng.uniform(0.7, 1.3), COLOURS[name])
        else:
            for dx in (-0.07, 0.0, 0.07):
                weed(canvas, rng, px + dx, py, 0.5 * near * rng.uniform(0.7, 1.3), (40, 130, 80))
    colour = COLOURS[fish_name]
    striped = bool(rng.random() < 0.5)
    for sx, sy in canvas.scatter(rng, 13, -2.7, floor - 0.2):
        facing, size = (1 if rng.random() < 0.5 else -1), rng.uniform(0.05, 0.17)
        for _ in range(int(rng.integers(1, 5))):
            dx, dy = rng.normal(0, 3.2 * size), rng.normal(0, 1.6 * size)
            fish(canvas, sx + dx, min(sy + dy, floor - 0.12), size, colour, facing, striped)
    for bx, by in canvas.scatter(rng, 14, -2.5, floor):
        canvas.ellipse(bx, by, 0.03, 0.03, (190, 230, 240))
    return f"an underwater reef with {fish_name} fish and {coral_name} corals"


def night(canvas: Canvas, rng: Rng) -> str:
    """A starry sky with a moon over a dark skyline."""
    moon = pick(rng, ("full", "crescent"))
    land = pick(rng, ("snowy mountains", "dark hills", "a pine forest"))
    horizon = rng.uniform(0.2, 0.6)
    zenith: Colour = (10, 14, 42)
    canvas.paint(gradient(canvas, [(-2.5, (5, 7, 26)), (-0.5, zenith), (horizon, (62, 62, 118))]))
    for sx, sy in canvas.scatter(rng, 150, -WORLD, horizon):
        r = 0.006 + 0.022 * rng.random() ** 4
        canvas.ellipse(sx, sy, r, r, mix((190, 200, 240), (255, 240, 200), rng.random()))
    mx, my, mr = rng.uniform(-1.0, 1.0), rng.uniform(-1.3, -0.3), rng.uniform(0.16, 0.28)
    canvas.ellipse(mx, my, mr * 1.35, mr * 1.35, mix(zenith, (90, 92, 130), 0.5))
    canvas.ellipse(mx, my, mr, mr, (242, 236, 205))
    if moon == "crescent":
        canvas.ellipse(mx + 0.45 * mr, my - 0.1 * mr, 0.92 * mr, 0.92 * mr, mix(zenith, (90, 92, 130), 0.5))
    else:
        canvas.ellipse(mx - 0.3 * mr, my - 0.2 * mr, 0.2 * mr, 0.2 * mr, (222, 214, 180))
        canvas.ellipse(mx + 0.25 * mr, my + 0.3 * mr, 0.14 * mr, 0.14 * mr, (222, 214, 180))
    if land == "snowy mountains":
        for px in np.sort(rng.uniform(-WORLD, WORLD, 11)):
            h = rng.uniform(0.4, 0.9)
            canvas.polygon([(px - h, horizon + 0.3), (px + h, horizon + 0.3), (px, horizon + 0.3 - h)], (52, 56, 92))
            canvas.polygon(
                [(px - 0.3 * h, horizon + 0.3 - 0.7 * h), (px - 0.08 * h, horizon + 0.3 - 0.62 * h),
                 (px + 0.1 * h, horizon + 0.3 - 0.72 * h), (px + 0.3 * h, horizon + 0.3 - 0.7 * h),
                 (px, horizon + 0.3 - h)],
                (206, 214, 234),
            )  # fmt: skip
    canvas.polygon(ridge(rng, horizon + 0.15, 0.3, 0.5), (26, 30, 58))
    canvas.polygon(ridge(rng, horizon + 0.6, 0.2, 0.5), (16, 20, 40))
    if land == "a pine forest":
        for px, py in canvas.scatter(rng, 60, horizon + 0.1, 2.6):
            near = 0.6 + 0.3 * (py - horizon)
            tree(
                canvas,
                px,
                py,
                0.55 * near * rng.uniform(0.7, 1.3),
                mix((30, 44, 60), (12, 18, 26), near - 0.5),
                True,
            )
    return f"a night sky with a {moon} moon over {land}"


def meadow(canvas: Canvas, rng: Rng) -> str:
    """A flowering meadow under a wide sky."""
    flower_name = pick(rng, ("red", "yellow", "white", "purple", "pink"))
    weather = pick(rng, ("blue", "cloudy", "sunset"))
    horizon = rng.uniform(-0.1, 0.4)
    top, low = {
        "blue": ((70, 140, 225), (185, 220, 245)),
        "cloudy": ((140, 160, 182), (212, 220, 226)),
        "sunset": ((70, 80, 150), (250, 170, 100)),
    }[weather]
    canvas.paint(gradient(canvas, [(-2.2, shade(top, 0.85)), (-0.8, top), (horizon, low)]))
    if weather != "cloudy":
        sx, sy = rng.uniform(-1.2, 1.2), horizon - (0.2 if weather == "sunset" else rng.uniform(0.7, 1.4))
        canvas.ellipse(sx, sy, 0.24, 0.24, mix(low, (255, 240, 170), 0.5))
        canvas.ellipse(sx, sy, 0.17, 0.17, (255, 244, 190) if weather == "blue" else (255, 210, 120))
    puff = {"blue": (250, 250, 252), "cloudy": (178, 186, 196), "sunset": (240, 160, 140)}[weather]
    for cx, cy in canvas.scatter(rng, {"blue": 9, "cloudy": 24, "sunset": 9}[weather], -2.7, horizon - 0.35):
        cloud(canvas, cx, cy, rng.uniform(0.12, 0.36), puff)
    dim = 0.78 if weather == "sunset" else 1.0
    canvas.polygon(ridge(rng, horizon, 0.3, 0.45), shade((110, 150, 120), dim))
    canvas.polygon(ridge(rng, horizon + 0.18, 0.22, 0.4), shade((100, 165, 80), dim))
    canvas.polygon(ridge(rng, horizon + 0.5, 0.15, 0.4), shade((84, 150, 62), dim))
    canvas.polygon(ridge(rng, horizon + 1.3, 0.15, 0.4), shade((70, 132, 52), dim))
    for tx, ty in canvas.scatter(rng, 8, horizon + 0.15, horizon + 1.2):
        tree(
            canvas,
            tx,
            ty,
            rng.uniform(0.35, 0.6) * (0.7 + 0.5 * (ty - horizon)),
            shade((50, 120, 50), dim),
            False,
        )
    colour = shade(COLOURS[flower_name], dim)
    for fx, fy in canvas.scatter(rng, 150, horizon + 0.35, 2.8):
        r = 0.022 + 0.03 * (fy - horizon - 0.3)
        canvas.line([(fx, fy), (fx, fy + 2.5 * r)], 0.35 * r, shade((50, 110, 40), dim))
        for dx, dy in ((-0.7, 0.0), (0.7, 0.0), (0.0, -0.7), (0.0, 0.7)):
            canvas.ellipse(fx + dx * r, fy + dy * r, 0.6 * r, 0.6 * r, colour)
        canvas.ellipse(fx, fy, 0.45 * r, 0.45 * r, (250, 225, 90) if flower_name != "yellow" else (200, 130, 40))
    return f"a green meadow with {flower_name} flowers under a {weather} sky"


def house(canvas: Canvas, rng: Rng, x: float, ground: float, width: float, roof: Colour, lit: bool, dim: float) -> None:
    """A gabled house with windows, a door and sometimes a chimney."""
    walls: tuple[Colour, ...] = ((236, 220, 190), (225, 225, 225), (240, 200, 160), (205, 215, 225))
    wall = shade(walls[int(rng.integers(len(walls)))], dim)
    height = width * rng.uniform(0.8, 1.5)
    left, right, eaves = x - width / 2, x + width / 2, ground - height
    if rng.random() < 0.5:
        cx = x + 0.22 * width
        canvas.polygon([(cx, eaves), (cx + 0.12 * width, eaves), (cx + 0.12 * width, eaves - 0.55 * width),
                        (cx, eaves - 0.55 * width)], shade((150, 90, 75), dim))  # fmt: skip
    canvas.polygon([(left, ground), (right, ground), (right, eaves), (left, eaves)], wall)
    canvas.polygon(
        [(left - 0.1 * width, eaves), (right + 0.1 * width, eaves), (x, eaves - 0.55 * width)],
        shade(roof, dim),
    )
    pane = (255, 222, 120) if lit else shade((110, 150, 180), dim)
    rows = max(1, round(height / width * 2) - 1)
    for row in range(rows):
        wy = eaves + (row + 0.35) * height / (rows + 0.6)
        for wx in (left + 0.18 * width, right - 0.4 * width):
            if row == rows - 1 and wx > x - 0.1 * width:
                canvas.polygon([(wx, ground), (wx + 0.22 * width, ground), (wx + 0.22 * width, ground - 0.36 * width),
                                (wx, ground - 0.36 * width)], shade((110, 70, 45), dim))  # fmt: skip
                continue
            colour = pane if not lit or rng.random() < 0.8 else shade((60, 70, 90), dim)
            canvas.polygon([(wx, wy), (wx + 0.22 * width, wy), (wx + 0.22 * width, wy + 0.22 * width),
                            (wx, wy + 0.22 * width)], colour)  # fmt: skip


def town(canvas: Canvas, rng: Rng) -> str:
    """Rows of houses along streets, by day, at dusk or at night."""
    roof_name = pick(rng, ("red", "blue", "brown"))
    hour = pick(rng, ("noon", "dusk", "night"))
    horizon = rng.uniform(-0.2, 0.3)
    top, low, dim = {
        "noon": ((90, 155, 230), (200, 226, 246), 1.0),
        "dusk": ((80, 70, 130), (246, 160, 110), 0.72),
        "night": ((8, 12, 34), (44, 48, 92), 0.42),
    }[hour]
    canvas.paint(gradient(canvas, [(-2.2, shade(top, 0.85)), (-0.6, top), (horizon, low)]))
    if hour == "night":
        for sx, sy in canvas.scatter(rng, 90, -WORLD, horizon):
            r = 0.006 + 0.016 * rng.random() ** 3
            canvas.ellipse(sx, sy, r, r, (215, 215, 235))
        canvas.ellipse(rng.uniform(-1.2, 1.2), rng.uniform(-1.5, -0.8), 0.16, 0.16, (240, 236, 205))
    else:
        for cx, cy in canvas.scatter(rng, 9, -2.7, horizon - 0.5):
            puff = (250, 250, 252) if hour == "noon" else (225, 140, 130)
            cloud(canvas, cx, cy, rng.uniform(0.12, 0.34), puff)
    canvas.polygon(ridge(rng, horizon - 0.05, 0.25, 0.45), shade((120, 140, 130), dim))
    roof, lit = COLOURS[roof_name], hour != "noon"
    ground = horizon + 0.2
    scale = 0.26
    while ground < WORLD + 1.2:
        canvas.polygon([(-WORLD - 1, ground - 0.25 * scale), (WORLD + 1, ground - 0.25 * scale),
                        (WORLD + 1, WORLD + 1), (-WORLD - 1, WORLD + 1)], shade((120, 160, 90), dim))  # fmt: skip
        x = -WORLD + rng.uniform(0, scale)
        while x < WORLD:
            width = scale * rng.uniform(0.75, 1.15)
            if rng.random() < 0.82:
                house(canvas, rng, x, ground, width, roof, lit, dim)
            else:
                tree(canvas, x, ground, 1.3 * scale, shade((60, 120, 55), dim), False)
            x += width * rng.uniform(1.15, 1.5)
        street = ground + 0.06 * scale
        canvas.polygon([(-WORLD - 1, street), (WORLD + 1, street), (WORLD + 1, street + 0.4 * scale),
                        (-WORLD - 1, street + 0.4 * scale)], shade((125, 120, 125), dim))  # fmt: skip
        ground, scale = ground + 2.15 * scale, scale * 1.22
    return f"a town with {roof_name} roofs at {hour}"


SCENES: dict[str, Callable[[Canvas, Rng], str]] = {
    "reef": reef,
    "night": night,
    "meadow": meadow,
    "town": town,
}


def render(
    kind: str, seed: int, window: Window, size: int = 128, scatter: Scatter = scatter
) -> tuple[NDArray[np.uint8], str]:
    """Paint the window of the world (kind, seed): the picture, (size, size, 3) uint8, and its caption.

    The same kind and seed is the same world, whatever the window; `scatter` says where its small things are.
    """
    canvas = Canvas(window, size, scatter)
    caption = SCENES[kind](canvas, np.random.default_rng([seed, list(SCENES).index(kind)]))
    return canvas.picture(), caption


def random_window(rng: Rng) -> Window:
    """A window as a zoom-out meets them: small and detailed to wide."""
    half = float(np.exp(rng.uniform(np.log(0.45), np.log(1.9))))
    reach = min(0.8, WORLD - half - 0.3)
    return Window(float(rng.uniform(-reach, reach)), float(rng.uniform(-0.35, 0.5)), half)
