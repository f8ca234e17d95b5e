"""The command line, as a script or a clumsy person uses it: exit codes, JSON, messages, and no half-made files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from outzoom import cli
from outzoom.runtime import open_manifest
from outzoom.runtime.backends import BACKENDS

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
SHORT = ["--seconds", "0.2", "--steps", "1", "--guidance", "1"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_json(run):
    """The same with --json: stdout must be one JSON object, and errors must be on stderr too."""

    def run_json(*arguments):
        code, out, err = run(*arguments, "--json")
        result = json.loads(out)
        assert out.count("\n") == 1
        assert isinstance(result, dict)
        if code:
            assert result.keys() == {"error"}
            assert f"error: {result['error']['message']}" in err
        return code, result, err

    return run_json


@pytest.fixture
def fails(run_json):
    """The message and the hint, in one text, of a command that must fail with `code`."""

    def fails(code, *arguments):
        found, result, _ = run_json(*arguments)
        assert found == code, result
        return "{message} | {hint}".format(**result["error"])

    return fails


@pytest.fixture
def bundle(tiny_bundles):
    return tiny_bundles["onnxruntime-fp32"]


@pytest.fixture
def image(tmp_path):
    """Red above blue."""
    pixels = np.zeros((70, 90, 3), np.uint8)
    pixels[:35, :, 0] = pixels[35:, :, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def zoom(bundle, image):
    """The arguments of a short zoom; a keyword replaces one of them, None takes it out."""

    def zoom(**options):
        options = {"image": image, "prompt": "a reef", "out": "zoom.mp4", **options}
        pairs = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
        return ["zoom", bundle, *SHORT, *(text for pair in pairs for text in pair)]

    return zoom


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def frames_of(path):
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# what is typed


def test_without_arguments_the_commands_are_listed(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    for command in ("export-all", "zoom", "bench", "inspect", "doctor"):
        assert command in out


@pytest.mark.parametrize("command", [[], ["export-all"], ["zoom"], ["bench"], ["inspect"], ["doctor"]], ids=str)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_on_stdout(run, command, flag):
    code, out, err = run(*command, flag)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: outzoom")


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"outzoom {version('outzoom')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprt-all"], ["no command 'exprt-all'", "did you mean 'export-all'?"]),
        (["zoom", "--sceduler", "ddim"], ["No such option: --sceduler", "--scheduler", "outzoom zoom --help"]),
        (["zoom"], ["Missing argument 'BUNDLE'"]),
        (["zoom", "b", "--image", "x", "--prompt", "y"], ["Missing option '--out'"]),
        (["zoom", "b", "--image", "x", "--prompt", "y", "--out", "z", "--steps", "ten"], ["--steps", "integer"]),
        (["inspect", "a", "b"], ["unexpected extra argument"]),
        (["export-all", "--size", "512"], ["WIDTHxHEIGHT", "'512'", "--size 512x512"]),
        (["export-all", "--size", "\u0665x\u0665"], ["WIDTHxHEIGHT"]),
        (["export-all", "--size", "-64x64"], ["WIDTHxHEIGHT"]),
        (["export-all", "--size", "0x64"], ["multiples of", "0x64", "try --size"]),
        (["export-all", "--size", "99999x64"], ["multiples of", "99999x64"]),
        (["export-all", "--target", "onxruntime"], ["no target 'onxruntime'", "did you mean 'onnxruntime'?"]),
        (["export-all", "--recipe", "fp61"], ["no recipe 'fp61'", "did you mean 'fp16'?"]),
        (["export-all", "--recipe", "mine.toml"], ["no recipe file 'mine.toml'"]),
        (["export-all", "--hoist", "--batch", "2"], ["takes one picture at a time, and batch 2 is asked for"]),
        (["export-all", "--hoist", "--interop"], ["optimum's pipelines take the UNet whole", "leave out --hoist"]),
        (["export-all", "nowhere"], ["no checkpoint 'nowhere'", "owner/name@revision"]),
        (["export-all", "--config", "nowhere"], ["--config is for a single file"]),
        (["inspect", "nowhere"], ["no bundle 'nowhere'", "export-all"]),
        (["inspect", "[bold]"], ["no bundle '[bold]'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_users_mistake_is_code_2_and_says_what_and_what_to_do(fails, arguments, words):
    text = fails(2, *arguments)
    for word in words:
        assert word in text


def test_messages_show_no_control_characters_of_what_was_given(run):
    _, _, err = run("inspect", "\x1b[2J\udcff")
    assert "\ufffd[2J\ufffd" in err


# zoom


def test_a_zoom_writes_the_video_and_says_so(run, run_json, zoom, tmp_path):
    code, out, err = run(*zoom())
    assert code == 0
    assert out.startswith("zoom.mp4: 6 frames, 1 of them painted, in ")
    assert "frames" in err  # the progress bar
    assert len(frames_of(tmp_path / "zoom.mp4")) == 6
    code, result, err = run_json(*zoom(out="again.mkv"))
    assert code == 0
    assert 0 < result.pop("elapsed_seconds") < 60
    assert result.pop("peak_rss_bytes") > 2**20
    assert result == {
        "out": "again.mkv", "frames": 6, "keyframes_painted": 1, "keyframes_reused": 0, "keyframes": None,
        "duration_seconds": 0.2,
    }  # fmt: skip
    assert names(tmp_path) == ["again.mkv", "picture.png", "zoom.mp4"]


def test_a_strip_of_frames_is_written_too(run, zoom, tmp_path):
    assert run(*zoom(strip="strip.png"))[0] == 0
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (6 * 64 + 5 * 4, 64)


@pytest.mark.parametrize("strip", ["strip.jpg", "zoom.mp4", "", "picture.png", "./picture.png"])
def test_a_strip_that_would_replace_something_else_is_refused_before_the_work(fails, zoom, image, tmp_path, strip):
    before = image.read_bytes()
    assert "strip" in fails(2, *zoom(strip=strip))
    assert names(tmp_path) == ["picture.png"]
    assert image.read_bytes() == before


def test_keyframes_are_kept_where_they_are_asked_for_and_shown_the_other_way_round(run_json, zoom, tmp_path):
    code, result, _ = run_json(*zoom(keyframes="kept"))
    assert (code, result["keyframes_painted"], result["keyframes_reused"]) == (0, 1, 0)
    assert result["keyframes"] == "kept"
    assert names(tmp_path / "kept") == [".lock", "00000.png", "00001.png", "keyframes.json"]
    code, result, err = run_json(*zoom(keyframes="kept", out="in.mp4"), "--zoom-in")
    assert (code, result["keyframes_painted"], result["keyframes_reused"]) == (0, 0, 1)
    assert "1 of 1 keyframes are there from an earlier run, in 'kept'" in err
    outwards, inwards = (np.array(frames_of(tmp_path / name)) for name in ("zoom.mp4", "in.mp4"))
    assert np.abs(outwards[::-1].astype(int) - inwards).mean() < 4  # the codec's


def test_keyframes_of_another_zoom_are_refused_and_restart_paints_anew(fails, run_json, zoom):
    assert run_json(*zoom(keyframes="kept"))[0] == 0
    text = fails(2, *zoom(keyframes="kept", seed=1))
    assert "seed 0 there, 1 here" in text and "--restart" in text
    code, result, _ = run_json(*zoom(keyframes="kept", seed=1), "--restart")
    assert (code, result["keyframes_painted"]) == (0, 1)


def test_prompts_come_from_a_file_and_so_does_what_not_to_paint(run_json, zoom, tmp_path):
    (tmp_path / "prompts.txt").write_text("negative: people\n0 a reef\n5 a sea\n")
    for options, negative in (({}, "people"), ({"negative_prompt": ""}, "")):
        assert run_json(*zoom(prompt=None, prompts="prompts.txt", keyframes=f"kept{negative}", **options))[0] == 0
        settings = json.loads((tmp_path / f"kept{negative}" / "keyframes.json").read_text())["settings"]
        assert settings["negative_prompt"] == negative


def test_a_mistake_in_the_prompts_names_the_line(fails, zoom, tmp_path):
    (tmp_path / "prompts.txt").write_text("0 a reef\nfive a sea\n")
    assert "prompts.txt, line 2" in fails(2, *zoom(prompts="prompts.txt"))
    assert "--prompt TEXT or --prompts FILE" in fails(2, *zoom(prompt=None))
    assert names(tmp_path) == ["picture.png", "prompts.txt"]


def test_a_loop_and_an_end_picture_leave_the_video_alone(run_json, fails, zoom, tmp_path):
    options = {"zoom_rate": 64, "keyframe_every": 3}
    code, result, _ = run_json(*zoom(**options), "--loop")
    assert (code, result["frames"], result["keyframes_painted"]) == (0, 6, 2)
    code, result, _ = run_json(*zoom(out="end.mp4", end_image="picture.png", **options))
    assert (code, result["frames"], result["keyframes_painted"]) == (0, 6, 1)
    assert names(tmp_path) == ["end.mp4", "picture.png", "zoom.mp4"]
    assert "ends in the picture it began with" in fails(2, *zoom(end_image="picture.png"), "--loop")
    assert "has to widen 2 times" in fails(2, *zoom(), "--loop")


def pictures(folder):
    """Pictures that cameras, scanners and pranksters make."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is left will be above
    left_red = Image.new("RGB", (90, 70), "blue")
    left_red.paste("red", (0, 0, 45, 70))
    left_red.save(folder / "rotated.jpg", exif=exif, quality=95)
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    Image.new("RGBA", (80, 80), (255, 0, 0, 0)).save(folder / "transparent.png")
    Image.new("L", (80, 80), 128).save(folder / "grey.png")
    Image.new("I;16", (80, 80), 128 << 8).save(folder / "grey16.png")
    Image.new("P", (80, 80), 1).save(folder / "palette.gif")
    Image.new("L", (8000, 8000), 128).save(folder / "large.jpg")


@pytest.mark.parametrize(
    ("name", "above", "below"),
    [
        ("rotated.jpg", (255, 0, 0), (0, 0, 255)),
        ("pixel.png", (255, 0, 0), (255, 0, 0)),
        ("transparent.png", (255, 255, 255), (255, 255, 255)),
        ("grey.png", (128, 128, 128), (128, 128, 128)),
        ("grey16.png", (128, 128, 128), (128, 128, 128)),
        ("palette.gif", None, None),
        ("large.jpg", (128, 128, 128), (128, 128, 128)),
    ],
)
def test_any_picture_goes_in(run, zoom, tmp_path, name, above, below):
    pictures(tmp_path)
    code, _, err = run(*zoom(image=name))
    assert code == 0, err
    first = frames_of(tmp_path / "zoom.mp4")[0]
    for row, colour in ((8, above), (55, below)):
        if colour is not None:  # video loses some colour
            assert np.abs(first[row, 32].astype(int) - colour).max() <= 6


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("missing.png", None, ["no such file"]),
        ("empty.png", b"", ["not a picture"]),
        ("text.png", b"hello", ["not a picture"]),
        ("script.ps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ["not a picture"]),
        ("cut.png", "half", ["cannot be decoded"]),
        (".", None, ["not a regular file"]),
    ],
)
def test_what_is_no_picture_is_refused(fails, zoom, image, tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(image.read_bytes()[:100] if data == "half" else data)
    text = fails(2, *zoom(image=name))
    assert all(word in text for word in words), text
    assert not (tmp_path / "zoom.mp4").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "zoom.avi"}, ["no video ending '.avi'", ".mp4"]),
        ({"out": "zoom"}, ["no video ending 'zoom'"]),
        ({"out": "picture.png"}, ["no video ending '.png'"]),
        ({"out": "picture.png/zoom.mp4"}, ["cannot write"]),
        ({"out": "/proc/zoom.mp4"}, ["cannot write"]),
        ({"scheduler": "ddmi"}, ["no scheduler 'ddmi'", "did you mean 'ddim'?"]),
        ({"steps": 0}, ["steps", "got 0"]),
        ({"steps": 10**9}, ["steps"]),
        ({"seconds": "nan"}, ["seconds", "nan"]),
        ({"seconds": -1}, ["seconds"]),
        ({"seconds": 1e9}, ["seconds"]),
        ({"fps": 0}, ["--fps"]),
        ({"fps": "inf"}, ["--fps"]),
        ({"zoom_rate": 1}, ["--zoom-rate", "above 1"]),
        ({"keyframe_every": 0}, ["--keyframe-every"]),
        ({"guidance": "nan"}, ["guidance"]),
        ({"seed": -1}, ["seed"]),
        ({"prompt": b"caf\xe9".decode("utf-8", "surrogateescape")}, ["prompt", "UTF-8"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_and_what_was_there_stays(fails, zoom, image, tmp_path, options, words):
    (tmp_path / "zoom.mp4").write_text("an older video")
    text = fails(2, *zoom(**options))
    assert all(word in text for word in words), text
    assert names(tmp_path) == ["picture.png", "zoom.mp4"]
    assert (tmp_path / "zoom.mp4").read_text() == "an older video"


@pytest.mark.parametrize("name", ["[/red].mp4", ":smile:.mp4", "a b\u00e9.mp4"])
def test_the_output_is_named_as_it_was_given(run, zoom, image, tmp_path, name):
    code, out, _ = run(*zoom(out=f"./{name}"))
    assert code == 0
    assert out.startswith(f"{name}: 6 frames")
    assert (tmp_path / name).is_file()


def test_an_empty_prompt_works(run_json, zoom):
    assert run_json(*zoom(prompt=""))[0] == 0


@pytest.mark.filterwarnings("default::outzoom.runtime.PromptTruncatedWarning")
def test_a_prompt_of_500_tokens_is_cut_with_a_warning_on_stderr(run_json, zoom):
    code, _, err = run_json(*zoom(prompt="a " * 500))
    assert code == 0
    assert "warning: the prompt has 500 tokens, the model takes 75: the last 425 are left out" in err


def test_a_damaged_bundle_is_the_users_mistake(fails, zoom, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "unet" / "model.onnx.data").write_bytes(b"")
    arguments = zoom()
    arguments[1] = copy
    assert "truncated" in fails(2, *arguments)
    assert "truncated" in fails(2, "inspect", copy)


# the other commands


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_export_all_builds_and_inspect_shows(run, run_json, tiny_checkpoint, tmp_path):
    code, result, err = run_json("export-all", tiny_checkpoint, "--recipe", "fp16", "--out", "made")
    assert code == 0
    (made,) = result["bundles"]
    assert (made["path"], made["target"], made["recipe"]["name"]) == ("made/onnxruntime-fp16", "onnxruntime", "fp16")
    assert names(tmp_path / "made") == [".cache", "build.log", "onnxruntime-fp16"]
    assert "17/17" in err  # the progress bar ends where it should

    code, shown, _ = run_json("inspect", made["path"])
    assert code == 0
    assert shown == made
    code, out, _ = run("inspect", made["path"])
    assert code == 0
    assert "onnxruntime, recipe fp16, 64x64" in out
    for name in ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        assert name in out


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_export_all_hoists_and_the_bundle_zooms(run_json, zoom, tiny_checkpoint, stage_cache, tmp_path):
    code, result, err = run_json("export-all", tiny_checkpoint, "--hoist", "--out", "made", "--cache", stage_cache)
    assert code == 0, err
    (made,) = result["bundles"]
    parts = ["text_encoder", "unet_text", "unet_time", "unet", "unet_shallow", "vae_encoder", "vae_decoder"]
    assert list(made["components"]) == parts
    assert {*names(tmp_path / made["path"])} == {*parts, "tokenizer", "bundle.json"}
    arguments = zoom()
    arguments[1] = made["path"]
    code, result, _ = run_json(*arguments)
    assert (code, result["frames"], result["keyframes_painted"]) == (0, 6, 1)
    assert len(frames_of(tmp_path / "zoom.mp4")) == 6


def test_a_dry_run_says_what_would_be_done_and_does_nothing(run, run_json, tiny_checkpoint, tmp_path):
    arguments = ["export-all", tiny_checkpoint, "--recipe", "fp16", "--out", "planned", "--dry-run"]
    code, result, _ = run_json(*arguments)
    assert code == 0
    assert len(result["stages"]) == 16
    assert result["seconds"] > 0 and result["disk_bytes"] > result["kept_bytes"] > 0
    code, out, _ = run(*arguments)
    assert code == 0
    assert "unet: compile for onnxruntime, fp16" in out and "16 stages to run" in out
    assert not list(tmp_path.glob("planned/*-*"))


def test_inspect_says_what_is_in_the_bundle(run_json, bundle):
    code, shown, err = run_json("inspect", bundle)
    assert (code, err) == (0, "")
    opened = open_manifest(bundle)
    assert shown["size_bytes"] == opened.size_bytes
    assert shown["components"]["unet"]["parity_psnr_db"] == opened.manifest.components["unet"].parity_psnr_db
    assert {"path", "schema_version", "target", "recipe", "source", "sizes", "batch", "files", "tools"} <= shown.keys()


def test_inspect_shows_names_with_brackets_as_they_are(run, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "[/x]:smile:")
    code, out, _ = run("inspect", "[/x]:smile:")
    assert code == 0
    assert "[/x]:smile:: onnxruntime" in out


def test_doctor_says_what_the_machine_can_do(run, run_json):
    code, report, err = run_json("doctor")
    assert (code, err) == (0, "")
    assert report["outzoom"] == version("outzoom")
    assert report["packages"]["base"]["numpy"] == version("numpy")
    assert report["packages"]["onnxruntime"] == {"onnxruntime": version("onnxruntime")}
    assert {"base", "export", "openvino", "video", "bench"} <= report["packages"].keys()
    assert report["targets"].keys() == BACKENDS.keys()
    assert report["targets"]["onnxruntime"].startswith(f"ready ({version('onnxruntime')}")
    machine = report["machine"]
    assert machine["cores"] >= 1
    assert min(machine["memory_bytes"], machine["disk_free_bytes"]) > 2**20
    code, out, _ = run("doctor")
    assert code == 0
    assert "target openvino-cpu: ready" in out
    assert "GiB memory" in out


# failures


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("odd"), ["unexpected RuntimeError: odd", "report it"]),
        (MemoryError(), ["not enough memory", "smaller size"]),
        (OSError(28, "No space left on device", "x.bin"), ["No space left on device: x.bin"]),
        (KeyboardInterrupt(), ["interrupted"]),
    ],
    ids=["bug", "memory", "disk", "Ctrl-C"],
)
def test_a_failure_is_code_1_and_json_too(fails, monkeypatch, error, words):
    def examine():
        raise error

    monkeypatch.setattr("outzoom.doctor.examine", examine)
    text = fails(1, "doctor")
    assert all(word in text for word in words), text


def test_a_package_that_is_there_but_broken_does_not_stop_the_doctor(run_json, monkeypatch):
    from outzoom.runtime.backends.openvino import OpenVino

    def version(self):
        raise RuntimeError("libtbb.so.12: no such file")

    monkeypatch.setattr(OpenVino, "version", version)
    code, report, _ = run_json("doctor")
    assert code == 0
    assert report["targets"]["openvino-cpu"] == "broken: libtbb.so.12: no such file"


# in a process of its own


@pytest.fixture
def start(tmp_path):
    """Run the real command in an empty folder, with some packages made impossible to import."""

    def start(*arguments, blocked=(), **environment):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        paths = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, [os.environ.get("PYTHONPATH")])])
        for name in blocked:
            (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('blocked', name='{name}')")
        return subprocess.Popen(
            [sys.executable, "-m", "outzoom", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )  # fmt: skip

    return start


@pytest.fixture
def finish(start):
    def finish(*arguments, **options):
        child = start(*arguments, **options)
        out, err = child.communicate(timeout=120)
        return child.returncode, out, err

    return finish


def test_zoom_needs_none_of_the_packages_that_export_needs(finish, zoom, tmp_path):
    blocked = ["torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors", "matplotlib"]
    code, _, err = finish(*zoom(), blocked=blocked)
    assert code == 0, err
    assert (tmp_path / "zoom.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "blocked", "extra"),
    [
        (["export-all"], "torch", "export"),
        (["export-all"], "diffusers", "export"),
        (["export-all", "--target", "openvino-cpu"], "openvino", "openvino"),
        (["zoom"], "onnxruntime", "onnxruntime"),
        (["zoom"], "av", "video"),
        (["bench", "nowhere"], "matplotlib", "bench"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_package_comes_with_the_extra_to_install(
    finish, zoom, tiny_checkpoint, tmp_path, arguments, blocked, extra
):
    if arguments == ["zoom"]:
        arguments = zoom()
    elif arguments[0] == "export-all":
        arguments = [arguments[0], tiny_checkpoint, *arguments[1:]]
    code, out, err = finish(*arguments, "--json", blocked=[blocked])
    assert code == 2, err
    error = json.loads(out)["error"]
    assert f"'{blocked}', which is not installed" in error["message"]
    assert error["hint"] == f"pip install 'outzoom[{extra}]'"
    assert not (tmp_path / "zoom.mp4").exists()
    assert not list(tmp_path.glob("out/*-*"))


def test_doctor_names_the_extra_of_a_missing_target(finish):
    code, out, _ = finish("doctor", "--json", blocked=["openvino"])
    assert code == 0
    assert "pip install 'outzoom[openvino]'" in json.loads(out)["targets"]["openvino-cpu"]


def test_a_terminal_without_unicode_gets_its_tables(finish, bundle):
    code, out, err = finish("inspect", bundle, PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert "text_encoder" in out


@posix_only
def test_ctrl_c_in_the_middle_of_a_zoom_keeps_what_is_painted_and_no_half_made_file(start, run_json, zoom, tmp_path):
    arguments = [*zoom(strip="strip.png"), "--seconds", "3"]
    child = start(*arguments, "--zoom-in", "--json", "--steps", "200")
    deadline = time.monotonic() + 60
    while not (tmp_path / "zoom.mp4.keyframes" / "00001.png").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 1, err
    error = json.loads(out)["error"]
    assert "interrupted" in error["message"] and "of 3 keyframes are kept in 'zoom.mp4.keyframes'" in error["message"]
    assert "the same command goes on" in error["hint"]
    assert "Traceback" not in err
    assert names(tmp_path) == ["blocked", "picture.png", "zoom.mp4.keyframes"]
    code, result, _ = run_json(*arguments, "--zoom-in", "--steps", "200")
    assert code == 0
    assert result["keyframes_reused"] >= 1
    assert result["keyframes_reused"] + result["keyframes_painted"] == 3
    assert names(tmp_path) == ["blocked", "picture.png", "strip.png", "zoom.mp4"]


@posix_only
def test_a_zoom_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(start, run_json, zoom, tmp_path):
    arguments = [*zoom(strip="strip.png"), "--seconds", "3", "--steps", "200", "--zoom-in"]
    child = start(*arguments)
    deadline = time.monotonic() + 60
    while not (tmp_path / "zoom.mp4.keyframes" / "00001.png").exists():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.02)
    child.kill()
    child.communicate()
    code, result, _ = run_json(*arguments)
    assert code == 0 and result["keyframes_reused"] >= 1
    made = (tmp_path / "strip.png").read_bytes()
    code, result, _ = run_json(*arguments)
    assert code == 0 and result["keyframes_reused"] == 0
    same = made == (tmp_path / "strip.png").read_bytes()  # `assert a == b` would show a diff, for hours
    assert same


def test_ctrl_c_before_anything_is_painted_leaves_nothing(fails, zoom, tmp_path, monkeypatch):
    def interrupted(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("outzoom.runtime.Zoom.keyframe_around", interrupted)
    text = fails(1, *zoom())
    assert "interrupted" in text and "kept" not in text
    assert names(tmp_path) == ["picture.png"]


def test_a_reader_that_goes_away_is_no_traceback(start):
    child = start("doctor")
    child.stdout.close()
    with child.stderr as stderr:
        err = stderr.read()
    child.wait(timeout=60)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
