"""Video out: the frames come back, memory stays flat, and a file is complete or not there."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outzoom.runtime import video
from outzoom.runtime.errors import MissingPackageError, OutzoomError, UserError
from outzoom.runtime.video import VideoWriter

av = pytest.importorskip("av")

Picture = NDArray[np.uint8]


def plain(width: int, height: int, colour: object = (200, 30, 90)) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def waves(width: int, height: int, count: int) -> list[Picture]:
    """Smooth grey pictures that differ from frame to frame."""
    y, x = np.mgrid[0:height, 0:width]
    grey = [127 + 100 * np.sin(x / 9 + index / 3) * np.cos(y / 11) for index in range(count)]
    return [np.repeat(np.rint(level)[..., None], 3, axis=2).astype(np.uint8) for level in grey]


def read(path: Path) -> list[Picture]:
    """The frames of a file as RGB, by BT.709's own equations: PyAV 14.0 and 15.1 decode as BT.601 whatever it says."""
    with av.open(str(path)) as container:
        return [from_bt709(frame) for frame in container.decode(video=0)]


def from_bt709(frame: Any) -> Picture:
    planes = frame.to_ndarray(format="yuv420p").astype(float).ravel()
    height, width = frame.height, frame.width
    quarter = height * width // 4
    y = (planes[: 4 * quarter].reshape(height, width) - 16) / 219
    cb, cr = (planes[4 * quarter :].reshape(2, height // 2, width // 2) - 128) / 224
    cb, cr = (np.kron(plane, np.ones((2, 2))) for plane in (cb, cr))
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    return np.rint(255 * np.clip(np.stack([red, green, blue], -1), 0, 1)).astype(np.uint8)


def psnr_db(a: Picture, b: Picture) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "h264"), (".mkv", "h264"), (".webm", "vp9"), (".MP4", "h264")])
def test_the_frames_come_back(tmp_path: Path, ending: str, codec: str) -> None:
    path, frames = tmp_path / f"zoom{ending}", waves(128, 96, 20)
    with VideoWriter(path, 128, 96, fps=25) as writer:
        for frame in frames:
            writer.write(frame)
        assert writer.count == 20
        assert writer.duration_seconds == 0.8
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    decoded = read(path)
    assert len(decoded) == 20
    for frame, original in zip(decoded, frames, strict=True):
        assert psnr_db(frame, original) > 35
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
        assert stream.average_rate == 25
        assert container.duration / 1e6 == pytest.approx(0.8, abs=0.002)


def test_colours_are_bt709_and_say_so(tmp_path: Path) -> None:
    """Y of (200, 30, 90) is 76 in BT.709 and 91 in BT.601, which players would guess at this size."""
    with VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30) as writer:
        writer.write(plain(64, 64))
    with av.open(str(tmp_path / "zoom.mp4")) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
    bt709, limited = 1, 1
    assert (context.colorspace, context.color_primaries, context.color_trc) == (bt709, bt709, bt709)
    assert context.color_range == limited
    assert frame.to_ndarray()[:64].mean() == pytest.approx(16 + 219 / 255 * 70.47, abs=1)
    np.testing.assert_allclose(read(tmp_path / "zoom.mp4")[0], plain(64, 64), atol=2)


def test_an_mp4_can_start_before_it_is_loaded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30) as writer:
        writer.write(plain(64, 64))
    data = (tmp_path / "zoom.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize(("width", "height"), [(127, 128), (128, 63), (33, 35), (16, 16), (3, 2), (1, 1)])
def test_odd_and_tiny_sizes_are_filled_up_by_their_edge(tmp_path: Path, ending: str, width: int, height: int) -> None:
    path = tmp_path / f"zoom{ending}"
    with VideoWriter(path, width, height, 30) as writer:
        for _ in range(2):
            writer.write(plain(width, height))
    expected = plain(width + width % 2, height + height % 2)
    for frame in read(path):
        np.testing.assert_allclose(frame, expected, atol=3)


def test_frame_rates_may_be_fractions(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "zoom.mp4", 16, 16, 29.97) as writer:
        for _ in range(30):
            writer.write(plain(16, 16))
        assert writer.duration_seconds == pytest.approx(30 / 29.97)
    with av.open(str(tmp_path / "zoom.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, abs=0.001)


def test_frames_need_not_be_contiguous(tmp_path: Path) -> None:
    frame = waves(64, 64, 1)[0]
    with VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30) as writer:
        writer.write(frame[:, ::-1])
    assert psnr_db(read(tmp_path / "zoom.mp4")[0], frame[:, ::-1]) > 35


def test_frames_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "zoom.mp4", 64, 32, 30) as writer:
        writer.write(plain(64, 32))
        for frame in (plain(32, 64), plain(64, 32)[..., 0], plain(64, 32).astype(np.float32)):
            with pytest.raises(ValueError, match=r"uint8 \(32, 64, 3\)"):
                writer.write(frame)
    assert len(read(tmp_path / "zoom.mp4")) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_video_and_nothing_half_made(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "zoom.mp4"
    path.write_text("old")
    with pytest.raises(error), VideoWriter(path, 64, 64, 30) as writer:
        for frame in waves(64, 64, 100):
            writer.write(frame)
        raise error
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["zoom.mp4"]


def test_an_exception_before_the_first_frame_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_from_outside_leaves_nothing(tmp_path: Path) -> None:
    script = """
import signal, sys, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
from outzoom.runtime.video import VideoWriter
with VideoWriter(sys.argv[1], 64, 64, 30) as writer:
    for index in range(10**9):
        writer.write(np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8))
        if index == 100:
            print("writing", flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "zoom.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, ending: str) -> None:
    """On real filesystems of 8 to 48 kB, so that it fills up at the start, in the middle, and at the end."""
    script = """
import sys, numpy as np
from pathlib import Path
from outzoom.runtime.errors import OutzoomError
from outzoom.runtime.video import VideoWriter
try:
    with VideoWriter(sys.argv[1] + "/zoom" + sys.argv[2], 64, 64, 30) as writer:
        for index in range(20):
            writer.write(np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8))
except OutzoomError as error:
    assert "disk is full" in str(error) and error.hint
    assert not list(Path(sys.argv[1]).iterdir())
    print("full")
"""
    mount = "mount -t tmpfs -o size={}k none " + str(tmp_path)
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "sh", "-c", mount.format(8)]).returncode:
        pytest.skip("user namespaces are not available, so no small filesystem can be made")
    for kilobytes in (8, 28, 44, 48):
        command = ["unshare", "-Urm", "sh", "-c", f'{mount.format(kilobytes)} && exec "$@"', "-"]
        command += [sys.executable, "-c", script, str(tmp_path), ending]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """After the encoder's look-ahead is full: 400 more frames of 197 kB would be 79 MB."""
    script = """
import re, sys, numpy as np
from outzoom.runtime.video import VideoWriter
def resident_kb():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
with VideoWriter(sys.argv[1], 256, 256, 30) as writer:
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for index in range(500):
        writer.write(np.roll(frame, index, axis=1))
        if index == 99:
            before = resident_kb()
    print(resident_kb() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "zoom.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15_000


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutzoomError, match="no frame"), VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["zoom.gif", "zoom.avi", "zoom"])
def test_another_ending_is_refused_with_the_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"\.mkv, \.mp4, \.webm"):
        VideoWriter(tmp_path / name, 64, 64, 30)


@pytest.mark.parametrize(
    ("width", "height", "fps"),
    [(0, 64, 30), (64, -1, 30), (64, 64, 0), (64, 64, 1e-4), (64, 64, float("nan")), (64, 64, 1e9)],
)
def test_sizes_and_rates_without_sense_are_refused(tmp_path: Path, width: int, height: int, fps: float) -> None:
    with pytest.raises(UserError) as caught:
        VideoWriter(tmp_path / "zoom.mp4", width, height, fps)
    assert caught.value.hint


def test_a_missing_pyav_is_named_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match="'av'") as caught:
        VideoWriter(tmp_path / "new" / "zoom.mp4", 64, 64, 30)
    assert "outzoom[video]" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_builds_without_x264_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV's own wheels have libx264; a distribution's may not. MPEG-4 is in every one."""
    monkeypatch.setitem(video.ENCODERS, ".mp4", ("not-in-this-build", "mpeg4"))
    frames = waves(128, 128, 10)
    with VideoWriter(tmp_path / "zoom.mp4", 128, 128, 30) as writer:
        assert writer.encoder == "mpeg4"
        for frame in frames:
            writer.write(frame)
    for frame, original in zip(read(tmp_path / "zoom.mp4"), frames, strict=True):
        assert psnr_db(frame, original) > 30


def test_builds_without_any_encoder_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video.ENCODERS, ".mp4", ("not-in-this-build",))
    with pytest.raises(OutzoomError, match="not-in-this-build") as caught:
        VideoWriter(tmp_path / "zoom.mp4", 64, 64, 30)
    assert "install" in caught.value.hint
