"""The report in a real browser, if this machine has one: what a person sees and does."""

import msgspec
import numpy as np
import pytest

from outzoom.benchmarks import read_results
from outzoom.benchmarks.keyframe_result import read_keyframe_result
from outzoom.benchmarks.loop import loop_data_uri
from outzoom.benchmarks.report import write_report

# Of each element with text of its own: the contrast of its colour with the first opaque background behind it.
# WCAG 2.2, "relative luminance" and "contrast ratio"; charts have text in the page's own colour.
CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.slice(0, 3).map((c) => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const rgb = channels(getComputedStyle(e).backgroundColor);
      if (rgb.length < 4 || rgb[3] > 0) return rgb;
    }
    return [255, 255, 255];
  };
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const shown = [...document.querySelectorAll("body *")].filter((e) =>
    hasText(e) && e.checkVisibility() && !e.closest("svg, script, style, option"));
  return shown.map((e) => {
    const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 60)];
  });
}"""


@pytest.fixture(scope="module")
def report(committed, tmp_path_factory):
    """A report of the committed results, with pictures of one colour a bundle, as a file."""
    results = read_results(committed / "demo-bench.json")
    warned = msgspec.structs.replace(results.machine, warning="The machine was busy.")
    shown = ("onnxruntime-fp32", "openvino-cpu-fp16", "openvino-cpu-int8")  # the reference among them
    bundles = tuple(bundle for bundle in results.bundles if bundle.name in shown)
    others = read_keyframe_result(committed / "demo-keyframe.json")
    results = msgspec.structs.replace(results, bundles=bundles, machine=warned, beside=others)
    count = len(results.settings.strip_indices)
    strips = {
        bundle.name: np.full((count, bundle.height, bundle.width, 3), 60 * i + 40, np.uint8)
        for i, bundle in enumerate(results.bundles)
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, strips, path, {name: loop_data_uri(strip, 4) for name, strip in strips.items()})
    return path


@pytest.fixture
def page(browser, report):
    """The report, opened on a phone; nothing may be said in the console, nothing fetched."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    page.goto(report.as_uri())
    yield page
    assert problems == []
    page.close()


def test_a_slider_wipes_between_two_bundles(page):
    stage = page.locator("#wipe-stage")
    assert [image.get_attribute("alt").partition(",")[0] for image in stage.locator("img").all()] == [
        page.locator("#wipe-left").input_value(), page.locator("#wipe-right").input_value(),
    ]  # fmt: skip
    page.get_by_label("Where the left one ends").fill("100")
    only_left = stage.screenshot()
    page.get_by_label("Where the left one ends").fill("0")
    only_right = stage.screenshot()
    page.locator("#wipe-right").select_option(index=0)
    same = only_left == only_right
    assert not same
    assert stage.locator("img").nth(1).get_attribute("src") == stage.locator("img").nth(0).get_attribute("src")
    page.locator("#wipe-frame").select_option(index=0)
    assert "frame 0 of the zoom" in stage.locator("img").nth(0).get_attribute("alt")


def test_other_pipelines_are_beside_ours_the_quickest_first(page, committed):
    sides = read_keyframe_result(committed / "demo-keyframe.json").sides
    section = page.locator("section", has_text="Beside other pipelines")
    names = [text.split("\n")[0].strip() for text in section.locator("tbody th").all_inner_texts()]
    assert sorted(names) == sorted(sides)
    medians = [np.median(sides[name].keyframe_seconds) for name in names]
    assert medians == sorted(medians)
    assert "reference" in section.locator("tr", has_text="diffusers 0").last.inner_text()
    assert all(name in section.get_by_role("img").get_attribute("aria-label") for name in names)


def test_the_zoom_plays(page):
    page.locator("details", has=page.locator("video")).first.locator("summary").click()
    page.wait_for_function("document.querySelector('video').readyState > 1")
    assert page.evaluate("document.querySelector('video').videoWidth") == 128


def test_nothing_sticks_out_on_a_phone_and_all_text_can_be_read_in_both_schemes(page):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        faint = [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRASTS) if ratio < 4.5]
        assert faint == []


def test_what_is_printed_has_no_controls(page):
    page.emulate_media(media="print")
    assert not page.locator("#wipe").is_visible()
    assert page.get_by_role("heading", name="Summary").is_visible()
