"""A machine with two speeds: only what was timed at the usual one counts."""

import pytest

from outzoom.hardware import steadiness
from outzoom.hardware.steadiness import Probe


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes only as far as what runs takes; a function that tells how long it takes at what time."""

    class Clock:
        now = 0.0

        def run(self):
            self.now += self.takes(self.now)

    clock = Clock()
    monkeypatch.setattr(steadiness.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_speed_that_is_usual_is_the_one_that_it_has_most_of_the_time(clock):
    clock.takes = lambda now: 0.01 if 3 < now % 10 < 5 else 0.02
    assert Probe.watching(clock.run, 20).usual_seconds == pytest.approx(0.02)


def test_what_is_timed_waits_for_the_usual_speed_and_is_repeated_where_that_changed(clock):
    clock.takes = lambda now: 0.02 if now < 100 or now > 105 else 0.01
    probe = Probe.watching(clock.run, 20)
    clock.now = 101.0
    begun = []

    def timed():
        begun.append(clock.now)
        clock.now += 1
        return clock.takes(clock.now)

    assert probe.during(timed) == 0.02
    assert begun[0] > 105 and len(begun) == 1
    clock.takes = lambda now: 0.02 if now < 200.5 or now > 203 else 0.01
    clock.now, begun[:] = 200.0, []
    assert probe.during(timed) == 0.02
    assert len(begun) == 2 and begun[1] > 203


def test_patience_ends_and_what_comes_is_taken(clock):
    clock.takes = lambda now: 0.02
    probe = Probe.watching(clock.run, 20)
    clock.takes = lambda now: 0.01
    started = clock.now
    assert probe.during(lambda: 7.0) == 7.0
    assert clock.now - started == pytest.approx(steadiness.PATIENCE_SECONDS, abs=1)
