"""Video in: every frame at its time, upright, at the size asked for; and what is wrong with a file is said."""

import os
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import break_frame, number_of, numbered, turn, write_clip

from outzoom.runtime import video_reader
from outzoom.runtime.errors import MissingPackageError, UserError
from outzoom.runtime.video_reader import DamagedVideoWarning, VideoReader, orientation

av = pytest.importorskip("av")


def read(path: Path, **options):
    with VideoReader(path, **options) as reader:
        return list(reader)


def numbers(path: Path, **options) -> list[int]:
    return [number_of(frame) for frame in read(path, **options)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.ts", "libx264")],
)
def test_every_frame_comes_once_and_in_order(tmp_path, name, codec):
    path = write_clip(tmp_path / name, map(numbered, range(12)), codec)
    with VideoReader(path) as reader:
        assert reader.fps == 25
        frames = list(reader)
    assert [number_of(frame) for frame in frames] == list(range(12))
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].dtype == np.uint8


def test_frames_that_are_reordered_for_compression_come_in_order(tmp_path):
    path = write_clip(tmp_path / "a.mp4", map(numbered, range(20)), options={"bf": "3"})
    assert numbers(path) == list(range(20))


# time


def test_a_variable_frame_rate_becomes_a_constant_one_that_keeps_every_time(tmp_path):
    """Frames at 0, 40, 80, 200, 240 and 440 ms: the third lasts 3 intervals of 40 ms, the fifth 5."""
    path = write_clip(tmp_path / "a.mkv", map(numbered, range(6)), pts=[0, 40, 80, 200, 240, 440])
    assert numbers(path, fps=25) == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 5]


def test_a_rate_of_ones_own_repeats_or_leaves_out_frames(tmp_path):
    path = write_clip(tmp_path / "a.mp4", map(numbered, range(10)), fps=20)
    assert numbers(path, fps=40) == [i // 2 for i in range(20)]
    assert numbers(path, fps=10) == [1, 3, 5, 7, 9]  # of two that begin in one frame the later one is shown


def test_timestamps_in_whole_milliseconds_do_not_stutter(tmp_path):
    """At 30 per second they are 0, 33, 67, 100, ...: neither early nor late enough for another frame."""
    path = write_clip(tmp_path / "a.mkv", map(numbered, range(30)), fps=30)
    with VideoReader(path) as reader:
        assert reader.fps == 30
        assert [number_of(frame) for frame in reader] == list(range(30))


def test_ntsc_rates_stay_exact(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30_000, 1001))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.fps == Fraction(30_000, 1001)
        assert len(list(reader)) == 5


def test_a_video_that_starts_late_starts_at_once_and_says_where(tmp_path):
    path = write_clip(tmp_path / "a.mkv", map(numbered, range(3)), pts=[5000, 5040, 5080])
    with VideoReader(path, fps=25) as reader:
        assert [number_of(frame) for frame in reader] == [0, 1, 2]
        assert reader.start_seconds == pytest.approx(5.0)


def test_a_timestamp_days_ahead_makes_no_endless_video(tmp_path):
    path = write_clip(tmp_path / "a.mkv", map(numbered, range(4)), pts=[0, 40, 400_000_000, 400_000_040])
    with VideoReader(path, fps=25) as reader, pytest.warns(DamagedVideoWarning, match="1 had no possible time"):
        assert [number_of(frame) for frame in reader] == [0, 1, 2, 3]


def test_one_frame_is_a_video(tmp_path):
    assert numbers(write_clip(tmp_path / "a.mp4", [numbered(3)])) == [3]


def test_how_many_frames_come_is_known_before(tmp_path):
    path = write_clip(tmp_path / "a.mp4", map(numbered, range(25)))
    with VideoReader(path) as reader:
        assert reader.expected_count == 25
    with VideoReader(path, fps=5) as reader:
        assert reader.expected_count == 5


# shape


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32), (200, 30), (33, 35), (1, 1)])
def test_frames_are_cut_and_scaled_to_fill_the_size(tmp_path, size):
    path = write_clip(tmp_path / "a.mp4", [numbered(20)])
    (frame,) = read(path, size=size)
    assert frame.shape == (size[1], size[0], 3)
    if min(size) > 20:
        assert frame[size[1] // 4, size[0] // 4].min() > 230
        assert number_of(frame) == 20


def test_the_cut_is_centred(tmp_path):
    """Columns 16 to 48 of 64 fill a square: a line at column 32 comes to the middle."""
    picture = np.full((32, 64, 3), 20, np.uint8)
    picture[:, 31:33] = 240
    frame = read(write_clip(tmp_path / "a.mp4", [picture]), size=(32, 32))[0]
    assert frame.mean(axis=(0, 2)).argmax() in (15, 16)
    assert abs(float(frame[:, 15].mean()) - float(frame[:, 16].mean())) < 20


@pytest.mark.parametrize(("width", "height"), [(63, 47), (17, 16), (3, 5)])
def test_odd_sizes_are_read(tmp_path, width, height):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        picture = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    (frame,) = read(tmp_path / "a.avi")
    assert frame.shape == (height, width, 3)
    np.testing.assert_allclose(frame, 90, atol=2)


@pytest.mark.parametrize(
    ("matrix", "bright_corner"),
    [
        ((1, 0, 0, 1), "upper left"),
        ((0, 1, -1, 0), "upper right"),  # a quarter turn clockwise: x is shown down, y to the left
        ((-1, 0, 0, -1), "lower right"),
        ((0, -1, 1, 0), "lower left"),
        ((-1, 0, 0, 1), "upper right"),  # mirrored
        ((0, 1, 1, 0), "upper left"),  # transposed
    ],
)
def test_phone_videos_are_turned_upright(tmp_path, matrix, bright_corner):
    path = write_clip(tmp_path / "a.mp4", [numbered(5)])
    turn(path, *matrix)
    (frame,) = read(path)
    assert frame.shape == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    vertical, horizontal = bright_corner.split()
    rows, columns = frame.shape[0] // 2, frame.shape[1] // 2
    half = frame[:rows] if vertical == "upper" else frame[rows:]
    quarter = half[:, :columns] if horizontal == "left" else half[:, columns:]
    assert quarter.mean() > 230
    assert frame.mean() < 120


def test_a_display_matrix_is_taken_to_the_nearest_quarter_turn():
    degrees = np.deg2rad(95)
    matrix = np.rint(65536 * np.array([[np.cos(degrees), np.sin(degrees)], [-np.sin(degrees), np.cos(degrees)]]))
    assert orientation(matrix.astype(np.int32)) == orientation(np.array([[0, 65536], [-65536, 0]], np.int32))


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(1), format="rgb24")))
        container.mux(stream.encode(None))
    (frame,) = read(tmp_path / "a.mp4")
    assert frame.shape == (48, 128, 3)


def test_frames_whose_size_changes_in_the_middle_fill_the_same_size(tmp_path):
    one = write_clip(tmp_path / "a.ts", map(numbered, range(3)))
    other = write_clip(tmp_path / "b.ts", [numbered(i, 96, 96) for i in range(3, 6)])
    joined = tmp_path / "c.ts"
    joined.write_bytes(one.read_bytes() + other.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)  # the second part's times begin again
        frames = read(joined, size=(32, 32))
    assert {frame.shape for frame in frames} == {(32, 32, 3)}
    assert number_of(frames[-1]) == 5


# what is wrong


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_a_broken_frame_is_counted_and_the_one_before_is_held(tmp_path, name, codec):
    path = write_clip(tmp_path / name, map(numbered, range(24)), codec, options={"g": "1"})
    break_frame(path, 9)
    with VideoReader(path) as reader, pytest.warns(DamagedVideoWarning, match="1 could not be decoded"):
        found = [number_of(frame) for frame in reader]
    assert reader.broken_count == 1
    assert found == [*range(9), 8, *range(10, 24)]


def test_a_broken_first_frame_is_skipped(tmp_path):
    path = write_clip(tmp_path / "a.mp4", map(numbered, range(6)), options={"g": "1"})
    break_frame(path, 0)
    with pytest.warns(DamagedVideoWarning):
        assert numbers(path) == [1, 2, 3, 4, 5]


def test_a_file_that_is_cut_off_gives_what_there_is(tmp_path):
    path = write_clip(tmp_path / "a.mkv", map(numbered, range(24)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)
        found = numbers(path)
    assert found == list(range(len(found)))
    assert 3 < len(found) < 24


def test_a_video_of_broken_frames_only_is_an_error(tmp_path):
    path = write_clip(tmp_path / "a.mp4", map(numbered, range(3)), options={"g": "1"})
    for index in range(3):
        break_frame(path, index)
    with VideoReader(path) as reader, pytest.raises(UserError, match="no frame that can be decoded"):
        list(reader)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        (b"", "not a video"),
        (b"hello\n" * 1000, "not a video"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n", "not a video"),
        (b"ffconcat version 1.0\nfile clip.mp4\n", "not a video"),
    ],
)
def test_a_file_that_is_no_video_is_refused(tmp_path, monkeypatch, content, words):
    """A playlist, too, which would read other files."""
    write_clip(tmp_path / "clip.mp4", [numbered(0)])
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        VideoReader(path)
    assert caught.value.hint


def test_an_address_is_taken_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4", "pipe:0"):
        with pytest.raises(UserError, match="no such file"):
            VideoReader(name)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a regular file"):
        VideoReader(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX file names")
def test_a_name_may_hold_anything(tmp_path):
    path = write_clip(tmp_path / "plain.mp4", [numbered(7)]).rename(tmp_path / "a%03d: [b] ü?.mp4")
    assert numbers(path) == [7]


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, [], audio="aac", audio_seconds=0.2)
    with pytest.raises(UserError, match="there is no video") as caught:
        VideoReader(path)
    assert "--image" in caught.value.hint


def test_a_huge_video_is_refused_before_its_frames_take_memory(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", [numbered(0, 640, 480)])
    monkeypatch.setattr(video_reader, "_MAX_PIXELS", 640 * 479)
    with pytest.raises(UserError, match="640x480"):
        VideoReader(path)


def test_a_frame_that_is_larger_than_the_file_says_is_not_decoded(tmp_path, monkeypatch):
    """The decoder itself holds to the limit: the file's header is not believed."""
    path = write_clip(tmp_path / "a.mp4", [numbered(0, 640, 480)])
    monkeypatch.setattr(video_reader, "_LIMITS", {"max_pixels": str(640 * 479)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)
        with pytest.raises(UserError, match="no frame that can be decoded"), VideoReader(path) as reader:
            list(reader)


@pytest.mark.parametrize("fps", [0, -1, 1e-4, 1e9, float("nan")])
def test_rates_without_sense_are_refused(tmp_path, fps):
    path = write_clip(tmp_path / "a.mp4", [numbered(0)])
    with pytest.raises(UserError, match="--fps"):
        VideoReader(path, fps=fps)


def test_a_missing_pyav_is_named(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", [numbered(0)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match="'av'"):
        VideoReader(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_memory_does_not_grow_with_the_length(tmp_path):
    """400 frames of 640x360 would be 276 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), np.uint8)
    path = write_clip(
        tmp_path / "a.mp4", (np.roll(noise, i, 1) for i in range(100)), options={"preset": "ultrafast", "crf": "40"}
    )
    script = """
import re, sys
from outzoom.runtime.video_reader import VideoReader
def resident_kb():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
with VideoReader(sys.argv[1], fps=100) as reader:
    for index, _ in enumerate(reader):
        if index == 100:
            before = resident_kb()
    assert index == 399
print(resident_kb() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15_000
