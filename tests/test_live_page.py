"""The live zoom's page in a real browser, if this machine has one: what a person sees and does."""

import time

import numpy as np
import pytest

from outzoom.runtime import LiveZoom, Motion, Painting, open_bundle
from outzoom.runtime.live_server import LiveServer


@pytest.fixture
def live(tiny_bundles):
    picture = np.full((64, 64, 3), 128, np.uint8)
    motion = Motion(fps=24, zoom_rate=2, keyframe_every=12)
    with open_bundle(tiny_bundles["onnxruntime-fp32"]) as zoom:
        live = LiveZoom(zoom, picture, "a reef", {"quality": Painting(steps=2, guidance=1)}, motion)
        with live:
            yield live


def until(page, condition):
    """Wait for what a script says (not in the page, whose policy runs only its own)."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def pixels(page):
    """What the picture on the page shows now."""
    return page.locator("#view").screenshot(type="png", animations="disabled")


def stands_still(page, seconds):
    """Wait until the picture stays the same for so long: what was sent before it stopped may still be on its way."""
    end = time.monotonic() + 60
    held, since = pixels(page), time.monotonic()
    while time.monotonic() < since + seconds:
        assert time.monotonic() < end, "the picture still moves a minute after it was stopped"
        page.wait_for_timeout(200)
        now = pixels(page)
        if now != held:
            held, since = now, time.monotonic()


def test_a_person_watches_the_zoom_changes_the_prompt_and_stops_it(browser, live):
    with LiveServer() as server, server.serving(live):
        page = browser.new_page(viewport={"width": 390, "height": 844})  # a phone's
        problems = []
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith((server.url, "data:")) or problems.append(request.url)
        )
        page.goto(server.url, wait_until="commit")

        until(page, "document.getElementById('view').naturalWidth === 64")
        until(page, "/^[1-9].* of 24 per second/.test(document.getElementById('fps').textContent)")
        first = pixels(page)
        for _ in range(40):  # it moves, be the machine ever so busy
            page.wait_for_timeout(500)
            if pixels(page) != first:
                break
        else:
            pytest.fail("the picture stood still for 20 seconds")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        watts = page.locator("#power").inner_text()
        assert watts == "not measured" or watts.endswith(")")

        page.get_by_label("What is around it").fill("a town")
        page.get_by_role("button", name="Paint this").click()
        until(page, "document.getElementById('view').alt.endsWith('a town')")
        assert live.status().prompt == "a town"

        page.get_by_label("Paint 1 frame in").fill("24")
        page.get_by_role("button", name="Set").click()
        until(page, "document.getElementById('keyframes').textContent.includes('1 in 24')")

        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Start").wait_for()
        assert not live.status().running
        end = time.monotonic() + 20
        while live.status().zoom_rate > 1.0001:
            assert time.monotonic() < end
            page.wait_for_timeout(100)
        shown = live.status().frames_shown
        page.wait_for_timeout(500)
        assert live.status().frames_shown <= shown + 1
        stands_still(page, seconds=1)

        page.get_by_label("Paint 1 frame in").fill("99999")
        page.get_by_role("button", name="Set").click()
        until(page, "document.getElementById('message').textContent.includes('--keyframe-every')")
        refused = [problem for problem in problems if "400" in problem]
        assert len(refused) == 1 and problems == refused  # the browser's own note of that answer, and nothing else
        page.close()


def test_a_page_without_the_token_says_so_and_who_wants_no_motion_gets_a_still_picture(browser, live):
    with LiveServer("0.0.0.0") as server, server.serving(live):
        own = f"http://127.0.0.1:{server.server_address[1]}/?token={server.token}"
        assert browser.new_page().goto(own.partition("?")[0]).status == 401
        page = browser.new_page(reduced_motion="reduce")
        page.goto(own)
        until(page, "document.getElementById('view').naturalWidth === 64")
        assert "frame.jpg" in page.locator("#view").get_attribute("src")
        page.get_by_role("button", name="Show the motion").click()
        until(page, "document.getElementById('view').src.includes('stream')")
        page.close()
