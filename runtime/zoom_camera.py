"""How a live zoom moves: at the speed that is asked for, or slower, so that it never runs into what isn't painted.

The camera's `depth` is the natural logarithm of how much wider its view is than that of the first picture; the view
widens by `exp(speed)` per second. With `ahead` the painted depth that it has not reached yet, and `seconds` until the
next keyframe is painted, it aims for

    speed = min(wanted, ahead / (seconds + reserve)),   reserve = max(RESERVE_SECONDS, RESERVE_FRACTION * painting)

and approaches that within SMOOTHING_SECONDS. Where painting keeps up, the first bound holds and the speed is constant.
Where it does not, the second one is the constant speed that arrives `reserve` before the next keyframe would be too
late: if each takes P seconds and is d deep, then from one keyframe to the next `ahead` and `seconds` fall in
proportion, and the speed settles at d / P, what painting can sustain. A keyframe that is later still leaves
`ahead / reserve`, so that the camera glides to a hold in front of it: it never stalls, jumps or overshoots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RESERVE_SECONDS = 0.3
RESERVE_FRACTION = 0.5  # of the time of painting: what comes later by a tenth slows the camera by less than a fifth
SMOOTHING_SECONDS = 0.3


@dataclass(frozen=True)
class Camera:
    """Where the camera is, and how fast it moves, per second."""

    depth: float = 0.0
    speed: float = 0.0

    def advanced(
        self, seconds: float, wanted_speed: float, painted_depth: float, due_seconds: float, painting_seconds: float
    ) -> Camera:
        """The camera after `seconds`, not beyond `painted_depth`.

        `due_seconds` is when the next keyframe is expected, `painting_seconds` what one takes.
        """
        ahead = max(painted_depth - self.depth, 0.0)
        reserve = max(RESERVE_SECONDS, RESERVE_FRACTION * painting_seconds)
        aim = min(wanted_speed, ahead / (max(due_seconds, 0.0) + reserve))
        speed = aim + (self.speed - aim) * math.exp(-seconds / SMOOTHING_SECONDS)
        speed = min(speed, ahead / max(reserve, seconds))
        return Camera(min(self.depth + speed * seconds, max(painted_depth, self.depth)), speed)
