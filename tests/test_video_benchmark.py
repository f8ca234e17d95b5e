"""The benchmark of a video's border: a painter that knows the truth scores best, and every number is JSON."""

import json
import math

import numpy as np
import pytest
from clips import write_clip

from outzoom.benchmarks.bench import check_more
from outzoom.benchmarks.drift import bench_drift
from outzoom.benchmarks.settings import BenchSettings, to_json
from outzoom.benchmarks.video import METHODS, Clip, Painter, bench_video, measure_video
from outzoom.runtime import Painting, UserError

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")
SIZE = (64, 64)


class Known:
    """Paints what is there, or grey."""

    size = SIZE

    def __init__(self, frames, is_true: bool) -> None:
        self.frames, self.is_true, self.count = frames, is_true, 0

    def paint(self, picture, mask, prompt, painting, *, on_step=None):
        self.count += 1
        if not self.is_true:
            return np.where(mask[..., None], 128, picture).astype(np.uint8)
        distances = [np.abs(frame[8:-8, 8:-8].astype(int) - picture[8:-8, 8:-8]).mean() for frame in self.frames]
        return self.frames[int(np.argmin(distances))]


@pytest.fixture(scope="module")
def clip():
    noise = np.random.default_rng(3).integers(0, 256, (128, 160, 3)).astype(np.float32)
    scene = np.clip(128 + 6 * (cv2.GaussianBlur(noise, (0, 0), 3) - 128), 0, 255).astype(np.uint8)
    return Clip("moving", "a scene", [scene[20:84, 2 * i + 20 : 2 * i + 84] for i in range(9)])


def measured(clip, is_true, every=(1, 4)):
    known = Known(clip.frames, is_true)
    result = measure_video(Painter(known), [clip], Painting(), keyframes_every=every)
    return {(score.method, score.keyframe_every): score for score in result.scores}, result, known


def test_the_truth_painted_everywhere_is_nearly_the_truth(clip):
    scores, result, _ = measured(clip, is_true=True)
    first = scores["look-ahead", 1]
    assert first.border_psnr_db > 35
    assert first.painted_count == first.frame_count == 9
    assert first.flicker_levels == pytest.approx(result.truths[0].flicker_levels, abs=0.7)
    assert first.detail_ratio == pytest.approx(1, abs=0.05)


def test_grey_scores_worse_than_the_truth(clip):
    true, grey = measured(clip, True)[0], measured(clip, False)[0]
    for key, score in true.items():
        assert score.border_psnr_db > grey[key].border_psnr_db + 3
        assert score.border_ssim > grey[key].border_ssim


def test_a_border_that_moves_scores_better_than_one_that_is_repeated(clip):
    scores, _, _ = measured(clip, is_true=True)
    ahead, live, repeated = (scores[method, 4] for method in METHODS)
    assert ahead.border_ssim > live.border_ssim > repeated.border_ssim
    assert ahead.flicker_levels < repeated.flicker_levels
    assert [ahead.painted_count, live.painted_count, repeated.painted_count] == [3, 3, 3]


def test_the_cost_is_what_is_painted_and_what_is_not(clip):
    _, result, known = measured(clip, is_true=True)
    one, four = result.costs
    assert (one.painted_fraction, four.painted_fraction) == (1, round(1 / 3, 4))
    assert four.frame_ms == pytest.approx(four.paint_ms / 3 + four.between_ms * 2 / 3, rel=0.01)
    assert known.count < 9 + 3 * 3  # what two methods ask for alike is painted once


def test_a_flat_clip_has_numbers_that_json_knows():
    flat = Clip("flat", "", [np.full((64, 64, 3), 90, np.uint8)] * 3)
    scores, result, _ = measured(flat, is_true=True, every=(1, 2))
    assert scores["look-ahead", 1].border_psnr_db == 100
    assert scores["look-ahead", 1].seam_ratio is None
    assert json.loads(to_json(result), parse_constant=lambda word: pytest.fail(word))
    assert not math.isnan(result.costs[0].frame_ms)


SETTINGS = BenchSettings(prompt="a reef", seconds=0.4, keyframe_every=2, steps=1, guidance=1)


def test_a_wide_video_is_its_own_truth(tiny_bundles, clip, tmp_path):
    video = write_clip(tmp_path / "wide.mp4", clip.frames * 2, fps=25)
    bundles = {"tiny": tiny_bundles["onnxruntime-fp32"]}
    stages = []
    bench_video(bundles, video, tmp_path, SETTINGS, stages.append)
    written = json.loads((tmp_path / "video.json").read_text())
    scores = written["bundles"]["tiny"]["scores"]
    assert len(scores) == len(stages) == 1 + 3 * 3
    assert {score["keyframe_every"] for score in scores} == {1, 2, 5, 10}
    assert {score["frame_count"] for score in scores} == {10}  # 0.4 seconds of 25
    assert all(5 < score["border_psnr_db"] < 40 for score in scores)


def test_drift_is_measured_over_as_many_keyframes_as_asked_for(tiny_bundles, tmp_path):
    results = bench_drift({"tiny": tiny_bundles["onnxruntime-fp32"]}, tmp_path, SETTINGS, 20)
    assert len(results["tiny"].painted) == 20
    written = json.loads((tmp_path / "drift.json").read_text())["tiny"]
    assert written["drift"]["detail_ratio"] > 0
    first, last = (
        np.mean([each["detail_levels"] for each in part]) for part in (written["painted"][:10], written["painted"][10:])
    )
    assert written["drift"]["detail_ratio"] == pytest.approx(last / first)


def test_what_cannot_be_measured_is_said_before_anything_is(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(UserError, match="not a video"):
        check_more(tmp_path / "text.mp4", None)
    with pytest.raises(UserError, match="20 to"):
        check_more(None, 19)
    check_more(None, None)
