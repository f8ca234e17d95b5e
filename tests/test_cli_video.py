"""`outzoom zoom --video`: any video goes in, what is wrong is said, and nothing half-made stays."""

import json

import numpy as np
import pytest
from clips import break_frame, numbered, turn, write_clip

from outzoom import cli
from outzoom.runtime import VideoZoom

av = pytest.importorskip("av")
pytest.importorskip("cv2")
pytestmark = pytest.mark.filterwarnings("default::outzoom.runtime.DamagedVideoWarning")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch, tiny_bundles):
    """Run `zoom` with few steps in an empty folder: exit code, what is on stdout as JSON, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(**options):
        options = {"video": "in.mp4", "prompt": "a reef", "out": "out.mp4", "steps": 1, "guidance": 1, **options}
        pairs = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
        words = [str(word) for pair in pairs for word in pair if word != ""]
        code = cli.run(["zoom", str(tiny_bundles["onnxruntime-fp32"]), *words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return run


@pytest.fixture
def clip(tmp_path):
    """12 frames with sound."""
    return write_clip(tmp_path / "in.mp4", map(numbered, range(12)), audio="aac", audio_seconds=0.48)


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_video_gets_a_border_and_keeps_its_length_its_rate_and_its_sound(run, clip, tmp_path):
    code, result, err = run(strip="strip.png")
    assert code == 0, err
    assert result["frames"] == 12
    assert result["keyframes_painted"] == 3  # frames 0, 5 and 10
    assert (result["fps"], result["audio"], result["broken_frames"]) == (25, "copied", 0)
    assert result["scale"] == [0.75, 0.75]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == 25
        assert container.streams.audio[0].codec_context.name == "aac"
    shown = frames_of(tmp_path / "out.mp4")
    assert len(shown) == 12
    assert shown[0].shape == (64, 64, 3)
    centres = [float(frame[40:48, 40:48].mean()) for frame in shown]  # the clip's lower right, lighter in each frame
    assert np.all(np.diff(centres) > 3)
    assert names(tmp_path) == ["in.mp4", "out.mp4", "strip.png"]


def test_seconds_rate_and_scale_are_as_asked_for(run, clip, tmp_path):
    code, result, _ = run(seconds=0.2, fps=50, scale=0.5, keyframe_every=4, no_audio="", out="out.webm")
    assert code == 0
    assert (result["frames"], result["keyframes_painted"], result["fps"]) == (10, 3, 50)
    assert result["scale"] == [0.5, 0.5]
    assert result["audio"] == "left out"
    assert len(frames_of(tmp_path / "out.webm")) == 10


def test_a_phone_video_stands_upright(run, clip, tmp_path):
    turn(clip, 0, 1, -1, 0)  # its bright upper left comes to the upper right
    assert run(keyframe_every=12)[0] == 0
    frame = frames_of(tmp_path / "out.mp4")[0]
    assert frame[14:28, 36:50].mean() > 200 > frame[14:28, 14:28].mean() + 100


def test_a_broken_frame_is_held_and_said(run, tmp_path):
    path = write_clip(tmp_path / "in.mp4", map(numbered, range(12)), options={"g": "1"})
    break_frame(path, 6)
    code, result, err = run()
    assert (code, result["frames"], result["broken_frames"]) == (0, 12, 1)
    assert "1 could not be decoded" in err


def test_one_frame_is_enough(run, tmp_path):
    write_clip(tmp_path / "in.mp4", [numbered(0)])
    code, result, _ = run()
    assert (code, result["frames"], result["keyframes_painted"], result["audio"]) == (0, 1, 1, "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"video": None}, ["nothing to zoom out of", "--image FILE", "--video FILE"]),
        ({"image": "in.mp4"}, ["--image and --video", "give the one"]),
        ({"zoom_rate": 2}, ["--zoom-rate is for --image", "--scale"]),
        ({"video": None, "image": "in.mp4", "scale": 0.5}, ["--scale is for --video", "--zoom-rate"]),
        ({"scale": 0.1}, ["--scale must be 0.25 to 0.97, got 0.1"]),
        ({"keyframe_every": 0}, ["--keyframe-every must be 1"]),
        ({"seconds": 0}, ["--seconds must be above 0"]),
        ({"fps": 1000}, ["--fps must be"]),
        ({"video": "no.mp4"}, ["cannot read the video no.mp4", "no such file"]),
        ({"video": "text.mp4"}, ["text.mp4 is not a video"]),
        ({"video": "."}, ["not a regular file"]),
        ({"out": "in.mp4"}, ["--out would replace the video 'in.mp4'"]),
        ({"strip": "in.png", "out": "out.gif"}, ["no video ending '.gif'"]),
        ({"strip": "in.jpg"}, ["PNG"]),
        ({"out": "/proc/out.mp4"}, ["cannot write"]),
    ],
)
def test_the_users_mistake_is_code_2_and_leaves_nothing(run, clip, tmp_path, options, words):
    (tmp_path / "text.mp4").write_text("hello\n" * 1000)
    code, result, _ = run(**options)
    assert code == 2, result
    text = "{message} | {hint}".format(**result["error"])
    for word in words:
        assert word in text
    assert names(tmp_path) == ["in.mp4", "text.mp4"]


def test_broken_frames_only_leave_nothing(run, tmp_path):
    path = write_clip(tmp_path / "in.mp4", map(numbered, range(3)), options={"g": "1"})
    for index in range(3):
        break_frame(path, index)
    code, result, _ = run()
    assert code == 2
    assert "no frame that can be decoded" in result["error"]["message"]
    assert names(tmp_path) == ["in.mp4"]


def test_an_interruption_leaves_what_was_there(run, clip, tmp_path, monkeypatch):
    (tmp_path / "out.mp4").write_text("an older video")
    frames = VideoZoom.frames

    def interrupted(*arguments):
        for index, frame in enumerate(frames(*arguments)):
            if index == 7:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(VideoZoom, "frames", interrupted)
    code, result, _ = run()
    assert code == 1
    assert "interrupted" in result["error"]["message"]
    assert names(tmp_path) == ["in.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "an older video"
