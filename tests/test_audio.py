"""Sound goes along: copied where it can be, encoded again where not, cut to the picture, and in time with it."""

import warnings

import numpy as np
import pytest
from clips import SAMPLE_RATE, numbered, write_clip

from outzoom.runtime.audio import AudioTrack, AudioWarning
from outzoom.runtime.video import VideoWriter
from outzoom.runtime.video_reader import VideoReader

av = pytest.importorskip("av")


def carried(source, target, limit=None):
    """Copy a video through the reader and the writer; how its sound went."""
    with VideoReader(source) as reader, AudioTrack(source) as audio:
        with VideoWriter(target, 64, 48, reader.fps, audio, lambda: reader.start_seconds) as writer:
            for index, frame in enumerate(reader):
                if index == limit:
                    break
                writer.write(frame)
        return audio.how


def sound_of(path):
    """The samples of the first channel as (time of the first, values), or None."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        resampler = av.AudioResampler("fltp", "stereo", SAMPLE_RATE)
        frames = [new for frame in container.decode(audio=0) for new in resampler.resample(frame)]
    return float(frames[0].pts * frames[0].time_base), np.concatenate([frame.to_ndarray()[0] for frame in frames])


def loudness(samples):
    return float(np.sqrt(np.mean(samples**2)))


@pytest.mark.parametrize(
    ("source", "codec", "target", "how"),
    [
        ("a.mp4", "aac", "out.mp4", "copied"),
        ("a.mp4", "aac", "out.mkv", "copied"),
        ("a.mp4", "aac", "out.webm", "encoded as libopus"),
        ("a.mkv", "libopus", "out.webm", "copied"),
        ("a.mkv", "pcm_s16le", "out.mkv", "copied"),
        ("a.mkv", "pcm_s16le", "out.mp4", "encoded as aac"),
        ("a.ts", "aac", "out.mp4", "copied"),
    ],
)
def test_sound_is_copied_or_encoded_again(tmp_path, source, codec, target, how):
    write_clip(tmp_path / source, map(numbered, range(25)), audio=codec, audio_seconds=1.0)
    assert carried(tmp_path / source, tmp_path / target) == how
    start, samples = sound_of(tmp_path / target)
    assert abs(start) < 0.05
    assert len(samples) / SAMPLE_RATE == pytest.approx(1.0, abs=0.08)
    assert loudness(samples[SAMPLE_RATE // 4 : -SAMPLE_RATE // 4]) == pytest.approx(12_000 / 32_768 / 2**0.5, rel=0.1)


def test_what_is_copied_is_the_same_to_the_last_bit(tmp_path):
    source, target = tmp_path / "a.mkv", tmp_path / "out.mkv"
    write_clip(source, map(numbered, range(25)), audio="pcm_s16le", audio_seconds=1.0)
    carried(source, target)
    assert np.array_equal(sound_of(source)[1], sound_of(target)[1])


def test_sound_ends_with_the_picture(tmp_path):
    write_clip(tmp_path / "a.mp4", map(numbered, range(25)), audio="aac", audio_seconds=5.0)
    carried(tmp_path / "a.mp4", tmp_path / "out.mp4", limit=10)
    assert len(sound_of(tmp_path / "out.mp4")[1]) / SAMPLE_RATE == pytest.approx(0.4, abs=0.05)


def test_sound_that_ends_earlier_is_no_error(tmp_path):
    write_clip(tmp_path / "a.mp4", map(numbered, range(25)), audio="aac", audio_seconds=0.3)
    carried(tmp_path / "a.mp4", tmp_path / "out.mp4")
    assert len(sound_of(tmp_path / "out.mp4")[1]) / SAMPLE_RATE == pytest.approx(0.3, abs=0.05)


def test_sound_before_the_first_picture_is_cut_off_so_that_both_stay_in_time(tmp_path):
    """The picture begins half a second late; the tone's phase tells which sample is the first."""
    write_clip(
        tmp_path / "a.mkv", map(numbered, range(12)), pts=[500 + 40 * i for i in range(12)],
        audio="pcm_s16le", audio_seconds=1.0,
    )  # fmt: skip
    carried(tmp_path / "a.mkv", tmp_path / "out.mkv")
    _, original = sound_of(tmp_path / "a.mkv")
    start, samples = sound_of(tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        picture_start = next(container.decode(video=0)).time
    first = round((0.5 + start - picture_start) * SAMPLE_RATE)
    assert np.array_equal(samples[:1000], original[first : first + 1000])
    assert abs(start - picture_start) <= 0.05


def test_a_file_that_holds_all_sound_before_the_first_picture_is_read_in_time(tmp_path):
    write_clip(tmp_path / "a.mkv", map(numbered, range(25)), audio="pcm_s16le", audio_seconds=1.0, audio_first=True)
    carried(tmp_path / "a.mkv", tmp_path / "out.mp4")
    assert len(sound_of(tmp_path / "out.mp4")[1]) / SAMPLE_RATE == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "out.webm"])
def test_a_video_without_sound_stays_without(tmp_path, target):
    write_clip(tmp_path / "a.mp4", map(numbered, range(5)))
    assert carried(tmp_path / "a.mp4", tmp_path / target) == "none"
    assert sound_of(tmp_path / target) is None


def test_broken_sound_is_counted_and_the_rest_kept(tmp_path):
    source = tmp_path / "a.mkv"
    write_clip(source, map(numbered, range(25)), audio="aac", audio_seconds=1.0)
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(source.read_bytes())
    position, size = packets[20]
    data[position + 8 : position + size] = bytes(255 for _ in range(size - 8))
    source.write_bytes(bytes(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        carried(source, tmp_path / "out.webm")
    assert loudness(sound_of(tmp_path / "out.webm")[1]) > 0.2
    assert all(issubclass(each.category, AudioWarning) for each in caught)


def test_sound_that_cannot_be_encoded_is_left_out_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("outzoom.runtime.audio.ENCODERS", {".webm": ("not-in-this-build",)})
    write_clip(tmp_path / "a.mp4", map(numbered, range(5)), audio="aac", audio_seconds=0.2)
    with pytest.warns(AudioWarning, match=r"cannot encode sound for \.webm"):
        assert carried(tmp_path / "a.mp4", tmp_path / "out.webm") == "none"
    assert sound_of(tmp_path / "out.webm") is None
