"""Real clients of .ort files: ONNX Runtime in Node and in a browser, and the page that zooms in the browser."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_recipes import write_recipes

from outzoom.export.parity import tensor_psnr_db
from outzoom.runtime import Painting, open_bundle

pytestmark = pytest.mark.web

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "web"
RECIPES = ("fp32", "fp16", "int8", "int4")
LEAST_DB = 40
# Of a keyframe. Where activations are rounded to integers, some fall the other way in a build that adds up floats in
# another order, in each of the UNet's runs; int8 itself is 40 dB from fp32.
LEAST_KEYFRAME_DB = {"fp32": 40, "int8": 30}
PROMPT = "an underwater reef with red fish"
STEPS, GUIDANCE, KEYFRAMES = 4, 3.0, 2
SECONDS = 120
READY = "document.getElementById('message').textContent === 'ready'"
BAD = "document.getElementById('message').className === 'bad'"


@pytest.fixture(scope="session")
def packages(request):
    """A folder with npm's packages and docs/web/vendor, kept between runs; skips where they can't be had."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = request.config.cache.mkdir("outzoom-web")
    lock, installed = PAGE / "package-lock.json", folder / "installed.json"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        for name in ("package.json", "package-lock.json", ".npmrc", "vendor.mjs"):
            shutil.copy(PAGE / name, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            pytest.skip(f"npm can't install what the page needs: {done.stderr.strip()[-300:]}")
        subprocess.run([npm, "run", "vendor"], cwd=folder, check=True, capture_output=True, timeout=60)
        shutil.copy(lock, installed)
    return folder


@pytest.fixture(scope="session")
def mobile(tmp_path_factory, build_bundles):
    """Bundles of the demo model as .ort files."""
    folder = tmp_path_factory.mktemp("mobile")
    made = build_bundles(ROOT / "models" / "demo", folder / "out", ["onnxruntime-mobile"], write_recipes(folder))
    return {path.name.removeprefix("onnxruntime-mobile-"): path for path in made.values()}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Any server of static files would do."""

    isolated = False

    def end_headers(self):
        """With what lets a page have threads, if a test asks for it."""
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        """Say nothing."""


class QuietServer(http.server.ThreadingHTTPServer):
    """Says nothing of a page that was closed, or a file that it did not want to the end."""

    def handle_error(self, *_):
        """Say nothing."""


@pytest.fixture
def site(packages, tmp_path):
    """The page, served from a folder that tests put bundles into: (folder, address)."""
    folder = tmp_path / "site"
    folder.mkdir()
    for file in PAGE.iterdir():
        if file.suffix in (".html", ".css", ".mjs"):
            shutil.copy(file, folder)
    (folder / "vendor").mkdir()
    for file in (packages / "vendor").iterdir():
        (folder / "vendor" / file.name).symlink_to(file)
    shutil.copy(ROOT / "models" / "demo" / "picture.png", folder / "vendor" / "picture.png")
    with QuietServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser, site):
    """A page on a phone, which must meet no problem and ask no other server."""
    _, address = site
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(SECONDS * 1000)
    problems = []
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or problems.append(one.url))
    page.problems = problems
    yield page
    page.close()


def until(page, script):
    """Wait for what a script says of the page."""
    for _ in range(SECONDS * 10):
        if page.evaluate(script):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{script}: {page.locator('main').inner_text()}")


def message(page):
    return page.locator("#message").inner_text()


def request_of(bundle, folder):
    """Write inputs of every component as raw binary; the request for clients.mjs, and what Python makes of them."""
    rng = np.random.default_rng(9)
    request, expected = [], {}
    with open_bundle(bundle) as zoom:
        for component, described in zoom.bundle.manifest.components.items():
            shutil.copy(bundle / described.engine, folder / f"{component}.ort")
            feeds = {
                spec.name: rng.integers(0, 600, spec.shape)
                if spec.dtype == "int64"
                else rng.standard_normal(spec.shape, np.float32)
                for spec in described.inputs
            }
            if component == "unet":
                feeds["timestep"] = np.full((1,), 500, np.float32)
            inputs = []
            for spec in described.inputs:
                file = f"{component}.{spec.name}.bin"
                (folder / file).write_bytes(feeds[spec.name].tobytes())
                inputs.append({"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "file": file})
            request.append({"component": component, "engine": f"{component}.ort", "inputs": inputs})
            expected[component] = zoom.inpainting.engine(component).run(feeds)
    return request, expected


def assert_same(made, expected):
    assert made.keys() == expected.keys()
    for component, outputs in expected.items():
        for name, array in outputs.items():
            found = np.array(made[component][name], np.float32).reshape(array.shape)
            psnr_db = tensor_psnr_db(array, found)
            print(f"{component}: {psnr_db:.1f} dB")
            assert psnr_db >= LEAST_DB, component


@pytest.mark.parametrize("recipe", RECIPES)
def test_node_computes_what_python_does(packages, mobile, tmp_path, recipe):
    request, expected = request_of(mobile[recipe], tmp_path)
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [shutil.which("node"), Path(__file__).parent / "clients.mjs", packages / "node_modules", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert_same(json.loads((tmp_path / "made.json").read_text()), expected)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_browser_computes_what_python_does(mobile, site, page, recipe):
    folder, address = site
    request, expected = request_of(mobile[recipe], folder)
    shutil.copy(Path(__file__).parent / "clients.mjs", folder)
    (folder / "empty.html").write_text("<!doctype html><title>empty</title><link rel='icon' href='data:,'>")
    page.goto(f"{address}/empty.html")
    made = page.evaluate(
        """async (request) => {
          const ort = await import("/vendor/ort.wasm.min.mjs");
          ort.env.wasm.wasmPaths = new URL("/vendor/", location.href).href;
          ort.env.wasm.numThreads = 1;
          const { runAll } = await import("/clients.mjs");
          const read = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
          return runAll(ort, request, read);
        }""",
        request,
    )
    assert_same(made, expected)
    assert not page.problems


def keyframes_of_python(bundle, picture, noise_folder):
    """Keyframes as the runtime paints them, and the noise that each starts from, in files for the page."""
    painting = Painting(steps=STEPS, guidance=GUIDANCE, seed=5)
    noise_folder.mkdir()
    with open_bundle(bundle) as zoom:
        for index in range(1, KEYFRAMES + 10):  # the page paints ahead
            zoom.inpainting.noise((painting.seed, index)).tofile(noise_folder / f"{index}.f32")
        keyframes = zoom.keyframes(picture, PROMPT, 0.5, painting)
        return [next(keyframes) for _ in range(KEYFRAMES + 1)][1:]


def listen(page):
    """Collect the keyframes that the page paints."""
    page.add_init_script(
        "window.painted = []; document.addEventListener('keyframe', ({ detail }) => window.painted.push(detail));"
    )


def fill(page):
    page.get_by_label("What is around it").fill(PROMPT)
    page.get_by_text("How it is painted").click()
    page.get_by_label("Steps").fill(str(STEPS))
    page.get_by_label("Guidance").fill(str(GUIDANCE))


@pytest.mark.parametrize("recipe", LEAST_KEYFRAME_DB)
def test_the_page_paints_the_keyframes_that_python_paints(mobile, site, page, picture, tmp_path, recipe):
    folder, address = site
    (folder / "bundle").symlink_to(mobile[recipe])
    expected = keyframes_of_python(mobile[recipe], picture, folder / "noise")
    Image.fromarray(picture).save(tmp_path / "meadow.png")
    listen(page)
    page.goto(f"{address}/?noise=noise")
    until(page, READY)
    page.get_by_label("Of a picture").set_input_files(tmp_path / "meadow.png")
    fill(page)
    page.get_by_role("button", name="Start").click()
    until(page, f"window.painted.length >= {KEYFRAMES}")
    page.get_by_role("button", name="Stop").click()
    for index, keyframe in enumerate(expected, 1):
        assert page.evaluate(f"window.painted[{index - 1}].index") == index
        found = page.evaluate(f"Array.from(window.painted[{index - 1}].data)")
        psnr_db = tensor_psnr_db(keyframe, np.array(found, np.uint8).reshape(keyframe.shape))
        print(f"keyframe {index}: {psnr_db:.1f} dB")
        assert psnr_db >= LEAST_KEYFRAME_DB[recipe]
    if shots := os.environ.get("OUTZOOM_SCREENSHOTS"):
        page.screenshot(path=Path(shots) / f"web-{recipe}.png")
    assert not page.problems


def test_an_isolated_page_paints_the_same_with_threads(mobile, site, page, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(Quiet, "isolated", True)
    folder, address = site
    (folder / "bundle").symlink_to(mobile["fp32"])
    expected = keyframes_of_python(mobile["fp32"], picture, folder / "noise")[0]
    Image.fromarray(picture).save(tmp_path / "meadow.png")
    listen(page)
    page.goto(f"{address}/?noise=noise")
    until(page, READY)
    assert page.evaluate("crossOriginIsolated")
    page.get_by_label("Of a picture").set_input_files(tmp_path / "meadow.png")
    fill(page)
    page.get_by_role("button", name="Start").click()
    until(page, "window.painted.length >= 1")
    page.get_by_role("button", name="Stop").click()
    found = np.array(page.evaluate("Array.from(window.painted[0].data)"), np.uint8).reshape(expected.shape)
    assert tensor_psnr_db(expected, found) >= LEAST_DB
    assert not page.problems


def test_a_person_starts_watches_stops_and_goes_on(mobile, site, page):
    folder, address = site
    (folder / "bundle").symlink_to(mobile["int8"])
    listen(page)
    page.goto(address)
    page.evaluate(  # a step may be over before it is looked for
        """() => {
          const doing = document.getElementById("doing");
          window.said = [];
          new MutationObserver(() => window.said.push(doing.textContent)).observe(doing, { childList: true });
        }"""
    )
    until(page, READY)  # the picture beside the page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    assert "demo, int8; 128x128" in page.locator("#model").inner_text()
    fill(page)
    page.keyboard.press("Enter")  # in a field: as the button does
    until(page, "window.said.some((text) => /^Keyframe 1: step [1-4] of 4$/.test(text))")
    assert page.locator("#progress").get_attribute("max") == "4"
    until(page, "window.painted.length >= 1")
    shown = page.locator("#view").screenshot()
    for _ in range(100):  # the camera moves while the next one is painted
        page.wait_for_timeout(100)
        if page.locator("#view").screenshot() != shown:
            break
    else:
        pytest.fail("the picture stood still for ten seconds")
    page.get_by_role("button", name="Stop").click()
    until(page, "/is painted/.test(document.getElementById('doing').textContent)")
    count = page.evaluate("window.painted.length")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.painted.length") == count

    page.get_by_label("What is around it").fill("a meadow " * 100)  # more than the model takes
    page.get_by_role("button", name="Start").click()
    until(page, f"window.painted.length > {count}")
    until(page, "document.getElementById('message').textContent.includes('too long')")
    assert "meadow" in page.locator("#view").get_attribute("aria-label")
    page.get_by_role("button", name="From the picture again").click()
    until(page, "window.painted.at(-1).index === 1 && window.painted.length > 2")
    page.get_by_role("button", name="Stop").click()
    assert not page.problems


def test_everything_can_be_reached_with_the_keyboard_and_has_a_name(mobile, site, page):
    folder, address = site
    (folder / "bundle").symlink_to(mobile["int8"])
    page.goto(address)
    until(page, READY)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[:4] == ["picture", "prompt", "toggle", "SUMMARY"]
    fields = "[...document.querySelectorAll('input, textarea, progress')]"
    assert page.evaluate(f"{fields}.filter((one) => one.labels.length !== 1).map((one) => one.id)") == []


def test_who_wants_no_motion_gets_keyframes_one_after_another(browser, mobile, site):
    folder, address = site
    (folder / "bundle").symlink_to(mobile["int8"])
    page = browser.new_page(reduced_motion="reduce")
    listen(page)
    page.goto(address)
    until(page, READY)
    fill(page)
    page.get_by_role("button", name="Start").click()
    until(page, "window.painted.length >= 1")
    shown = page.locator("#view").screenshot()
    page.wait_for_timeout(300)
    assert page.evaluate("window.painted.length") > 1 or page.locator("#view").screenshot() == shown
    page.close()


def test_without_a_bundle_the_page_says_where_it_looks_and_how_to_make_one(site, page):
    _, address = site
    page.goto(address)
    until(page, BAD)
    assert "/bundle/bundle.json" in message(page)
    assert "export-all --target onnxruntime-mobile" in message(page)
    assert page.get_by_role("button", name="Start").is_disabled()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(target="openvino-cpu"), "it is for"),
        (lambda manifest: manifest.update(schema_version=99), "schema version is 99"),
        (lambda manifest: manifest["files"].update({"../x": {"size_bytes": 1, "sha256": "0" * 64}}), "outside itself"),
        (lambda manifest: manifest["files"]["unet/model.ort"].update(sha256="0" * 64), "SHA-256"),
        (lambda manifest: manifest["files"]["unet/model.ort"].update(size_bytes=5), "more than 5 bytes"),
        (lambda manifest: manifest["files"]["unet/model.ort"].update(size_bytes=2**40), "has 1099511627776 bytes"),
        (lambda manifest: manifest["components"]["unet"]["inputs"].pop(), "the page gives it"),
        (lambda manifest: manifest["components"]["unet"].update(engine="unet/segments.json"), "not a listed file"),
        (lambda manifest: manifest["scheduler"].update(prediction_type="flow"), "prediction_type"),
        (lambda manifest: manifest.pop("components"), "has no 'components'"),
        (lambda manifest: manifest.update(sizes=[[1e9, 1e9]]), "its size is"),
    ],
)
def test_a_bundle_that_does_not_go_is_refused_with_its_reason(mobile, site, page, change, said):
    folder, address = site
    shutil.copytree(mobile["int8"], folder / "bundle", symlinks=False)
    manifest = json.loads((folder / "bundle" / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle" / "bundle.json").unlink()
    (folder / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    page.goto(address)
    until(page, f"{READY} || {BAD}")
    if page.get_by_role("button", name="Start").is_enabled():
        page.get_by_role("button", name="Start").click()
    until(page, BAD)
    assert said in message(page)


def test_a_file_that_is_no_engine_is_refused(mobile, site, page):
    import hashlib

    folder, address = site
    shutil.copytree(mobile["int8"], folder / "bundle")
    data = b"this is no engine"
    (folder / "bundle" / "vae_encoder" / "model.ort").unlink()
    (folder / "bundle" / "vae_encoder" / "model.ort").write_bytes(data)
    manifest = json.loads((folder / "bundle" / "bundle.json").read_text())
    manifest["files"]["vae_encoder/model.ort"] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "bundle" / "bundle.json").unlink()
    (folder / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    page.goto(address)
    until(page, READY)
    page.get_by_role("button", name="Start").click()
    until(page, BAD)
    assert "opening vae_encoder" in message(page)


def test_a_file_that_is_no_picture_is_refused_and_the_zoom_can_go_on(mobile, site, page, tmp_path):
    folder, address = site
    (folder / "bundle").symlink_to(mobile["int8"])
    (tmp_path / "words.png").write_text("no picture")
    page.goto(address)
    until(page, READY)
    page.get_by_label("Of a picture").set_input_files(tmp_path / "words.png")
    until(page, BAD)
    assert "words.png" in message(page)
    assert page.get_by_role("button", name="Start").is_enabled()


def test_a_bundle_on_another_server_is_refused(site, page):
    _, address = site
    page.goto(f"{address}/?bundle=http://127.0.0.2:9/bundle")
    until(page, BAD)
    assert "another server" in message(page)
    assert not page.problems


def test_a_browser_without_webassembly_is_told_so(site, page):
    _, address = site
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(address)
    until(page, BAD)
    assert "WebAssembly" in message(page)


def test_without_onnx_runtime_beside_it_the_page_says_what_to_do(mobile, site, page):
    folder, address = site
    (folder / "bundle").symlink_to(mobile["int8"])
    (folder / "vendor" / "ort.wasm.min.mjs").unlink()
    page.goto(address)
    until(page, BAD)
    assert "npm run vendor" in message(page)


def test_memory_that_the_browser_does_not_have_is_named_as_such(site, page):
    _, address = site
    page.goto(address)
    said = page.evaluate(
        """async () => {
          const { explained } = await import("/errors.mjs");
          const takers = [
            () => new ArrayBuffer(2 ** 53 - 1),
            () => new WebAssembly.Memory({ initial: 1, maximum: 1 }).grow(1),
          ];
          return takers.map((take) => {
            try {
              return take();
            } catch (error) {
              const { message, hint } = explained(error, "opening unet");
              return [message, hint];
            }
          });
        }"""
    )
    for text, hint in said:
        assert "not enough memory for opening unet" in text
        assert "int8" in hint


def test_the_lock_file_names_versions_and_no_addresses():
    text = (PAGE / "package-lock.json").read_text()
    assert "http" not in text.replace("https://opencollective.com", "").replace("https://github.com/sponsors", "")
    wanted = json.loads((PAGE / "package.json").read_text())
    for version in [*wanted["dependencies"].values(), *wanted["devDependencies"].values()]:
        assert version[0].isdigit()  # pinned
