"""Results beside each other: what is beyond noise is told, and a script sees it by the exit code."""

import json
from pathlib import Path

import msgspec
import pytest

from outzoom.benchmarks.compare import compare
from outzoom.benchmarks.repeat import repeated
from outzoom.benchmarks.results import Latency, Results, read_results, write_results
from outzoom.benchmarks.scripts import write_json
from outzoom.cli import run
from outzoom.runtime import UserError

COMMITTED = Path(__file__).parent.parent / "benchmarks" / "results" / "demo-bench.json"


@pytest.fixture(scope="module")
def results() -> Results:
    return read_results(COMMITTED)


def changed(results, **changes):
    """The results with another first bundle."""
    first = msgspec.structs.replace(results.bundles[0], **changes)
    return msgspec.structs.replace(results, bundles=(first, *results.bundles[1:]))


def with_keyframe(results, **latency):
    first = results.bundles[0]
    keyframe = msgspec.structs.replace(first.zoom.keyframe, **latency)
    return changed(results, zoom=msgspec.structs.replace(first.zoom, keyframe=keyframe))


def verdicts(before, after, noise=None):
    changes = compare(before, after, noise)
    return {(one.bundle, one.figure): one.verdict for one in changes if one.verdict != "within noise"}


def test_a_result_differs_from_itself_in_nothing(results):
    assert verdicts(results, results) == {}
    figures = {one.figure for one in compare(results, results)}
    assert {"keyframe_ms", "between_frame_ms", "unet_ms", "peak_rss_bytes", "size_bytes", "border_psnr_db"} <= figures


def test_a_time_is_worse_where_the_ranges_do_not_meet(results):
    name, old = results.bundles[0].name, results.bundles[0].zoom.keyframe
    twice = {"median_ms": 2 * old.median_ms, "p10_ms": 2 * old.p10_ms, "p90_ms": 2 * old.p90_ms}
    assert verdicts(results, with_keyframe(results, **twice)) == {(name, "keyframe_ms"): "worse"}
    assert verdicts(with_keyframe(results, **twice), results) == {(name, "keyframe_ms"): "better"}
    assert verdicts(results, with_keyframe(results, **{**twice, "p10_ms": old.p90_ms})) == {}


def test_a_hair_of_time_is_noise_even_where_the_ranges_do_not_meet(results):
    exact = Latency(100.0, 100.0, 100.0, 5)
    fields = {name: getattr(exact, name) for name in ("median_ms", "p10_ms", "p90_ms")}
    before = with_keyframe(results, **fields)
    assert verdicts(before, with_keyframe(results, **{name: value + 2 for name, value in fields.items()})) == {}
    worse = with_keyframe(results, **{name: value + 4 for name, value in fields.items()})
    assert list(verdicts(before, worse).values()) == ["worse"]


def test_what_runs_of_one_scenario_lie_apart_is_noise(results, tmp_path):
    name, old = results.bundles[0].name, results.bundles[0].zoom.keyframe

    def slower(factor):
        return with_keyframe(
            results, median_ms=factor * old.median_ms, p10_ms=factor * old.p10_ms, p90_ms=factor * old.p90_ms
        )

    noise = repeated([results, slower(2.0)])
    assert verdicts(results, slower(3.0), noise) == {(name, "keyframe_ms"): "worse"}
    assert verdicts(slower(3.0), results, noise) == {(name, "keyframe_ms"): "better"}
    assert verdicts(results, slower(1.9), noise) == {}
    assert verdicts(slower(1.9), results, noise) == {}
    write_results(results, tmp_path / "before.json")
    write_results(slower(1.9), tmp_path / "after.json")
    write_json(noise, tmp_path / "spread.json")
    both = ["bench", "--compare", str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    assert run(both) == 1
    assert run([*both, "--noise", str(tmp_path / "spread.json")]) == 0


def test_a_file_that_says_nothing_of_noise_is_refused(results, tmp_path, capsys):
    write_results(results, tmp_path / "results.json")
    both = ["bench", "--compare", *2 * [str(tmp_path / "results.json")]]
    for noise in (tmp_path / "results.json", tmp_path / "nowhere.json"):
        assert run([*both, "--noise", str(noise)]) == 2
        assert "does not say how far runs lie apart" in capsys.readouterr().err
    assert run(["bench", "bundle", "--noise", "spread.json"]) == 2


def test_a_file_of_other_pipelines_that_is_none_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"sides": []}')
    assert run(["bench", str(tmp_path), "--beside", str(tmp_path / "other.json")]) == 2
    assert "is no result of outzoom.benchmarks.keyframe" in capsys.readouterr().err


def test_bytes_and_decibels_have_directions_of_their_own(results):
    first = results.bundles[0]
    assert verdicts(results, changed(results, size_bytes=first.size_bytes // 2)) == {
        (first.name, "size_bytes"): "better"
    }
    index = next(
        i for i, one in enumerate(results.bundles) if one.quality and one.quality[0].border_psnr_db is not None
    )
    name, quality = results.bundles[index].name, results.bundles[index].quality
    lower = msgspec.structs.replace(quality[0], border_psnr_db=quality[0].border_psnr_db - 1)
    bundles = list(results.bundles)
    bundles[index] = msgspec.structs.replace(bundles[index], quality=(lower, *quality[1:]))
    after = msgspec.structs.replace(results, bundles=tuple(bundles))
    assert verdicts(results, after) == {(name, "border_psnr_db"): "worse"}


def test_other_settings_and_other_bundles_can_not_be_compared(results):
    with pytest.raises(UserError, match="other settings"):
        compare(results, msgspec.structs.replace(results, picture_sha256="0" * 64))
    with pytest.raises(UserError, match="no bundle in common"):
        compare(results, msgspec.structs.replace(results, bundles=()))


def test_the_exit_code_says_whether_anything_got_worse(results, tmp_path, capsys):
    write_results(results, tmp_path / "before.json")
    write_results(changed(results, size_bytes=2 * results.bundles[0].size_bytes), tmp_path / "after.json")
    both = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    assert run(["bench", "--compare", both[0], both[0]]) == 0
    capsys.readouterr()
    assert run(["bench", "--compare", *both, "--json"]) == 1
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert [one["figure"] for one in changes if one["verdict"] == "worse"] == ["size_bytes"]
    assert run(["bench", "--compare", *reversed(both)]) == 0
    assert "better" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bundle", "--compare", "a", "b"], [], ["--compare", "nowhere.json", "b.json"]])
def test_what_can_not_be_compared_is_a_mistake_of_the_users(arguments, capsys):
    assert run(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_published_schema_is_that_of_the_results(results):
    from outzoom.benchmarks.schema import FILE, results_schema

    same = json.loads(FILE.read_text("utf-8")) == json.loads(json.dumps(results_schema()))
    assert same, "run python -m outzoom.benchmarks.schema"
    stored = json.loads(COMMITTED.read_text("utf-8"))
    known = results_schema()["$defs"]
    assert stored.keys() <= known["Results"]["properties"].keys()
    assert set(known["Results"]["required"]) <= stored.keys()
    for bundle in stored["bundles"]:
        assert bundle.keys() <= known["BundleResult"]["properties"].keys()


def test_runs_of_one_scenario_lie_apart_by_the_largest_over_the_smallest(results):
    slower = with_keyframe(results, median_ms=results.bundles[0].zoom.keyframe.median_ms * 1.25)
    found = repeated([results, slower, results]).bundles[results.bundles[0].name]
    assert found["keyframe_ms"].spread == pytest.approx(0.25)
    assert len(found["keyframe_ms"].values) == 3
    assert found["peak_rss_bytes"].spread == 0


def test_runs_of_other_scenarios_are_not_compared(results):
    other = msgspec.structs.replace(results, bundles=results.bundles[1:])
    with pytest.raises(UserError, match="another scenario") as error:
        repeated([results, other])
    assert "--like" in error.value.hint
