"""The benchmark of compressors: what it does with scripts that work, fail or lie; the real ones need environments.

python -m venv rivals/nncf && rivals/nncf/bin/pip install -r benchmarks/rivals/nncf.txt    (and so on)
OUTZOOM_RIVALS=rivals python -m pytest -m rivals
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from outzoom.benchmarks.compression import ResultFile, distances, in_memory, measure
from outzoom.benchmarks.compressors import TORCH, Ours, Rival, Task, _compressing, rivals
from outzoom.benchmarks.engines import EngineFile, EngineProcess, loaded, outputs, time_in_turn
from outzoom.benchmarks.process import run_measured
from outzoom.export import read_recipe
from outzoom.runtime.backends import Loading, backend_for
from outzoom.runtime.bundle import COMPONENTS
from outzoom.runtime.errors import OutzoomError, UserError

ENVIRONMENTS = os.environ.get("OUTZOOM_RIVALS", "")
SCRIPT = """
import json, shutil, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], map(Path, sys.argv[2::2])))
with open(Path(__file__).with_suffix(".runs"), "a") as runs:
    runs.write("x")
print("so far, so good")
"""
COPIES = """
for file in given["--onnx"].parent.iterdir():
    shutil.copy(file, given["--out"])
print(json.dumps({"model": "model.onnx", "peak_rss_bytes": 5}))
"""
RUNS_ITSELF = """
import numpy as np
for number, file in enumerate(sorted(given["--held-out"].glob("*.npz"))):
    np.save(given["--outputs"] / f"{number}.npy", np.load(file)["sample"][:, :4])
(given["--out"] / "weights.bin").write_bytes(b"abc")
print(json.dumps({"model": "", "peak_rss_bytes": 5, "step_seconds": [2, 1], "running_seconds": 3.0}))
"""
FAILS = 'raise SystemExit("no such operator")'
LEAVES_NOTHING = """
print(json.dumps({"model": "model.onnx", "peak_rss_bytes": 5}))
"""


def rival(folder, name, body, target="onnxruntime"):
    script = folder / f"{name}.py"
    script.write_text(SCRIPT + body)
    return Rival(name, target, script, Path(sys.executable))


def runs_of(one):
    return len(one.script.with_suffix(".runs").read_text())


@pytest.fixture(scope="module")
def task(tiny_checkpoint, stage_cache, tmp_path_factory):
    work = tmp_path_factory.mktemp("compression")
    (work / "cache").symlink_to(stage_cache)
    task = Task(str(tiny_checkpoint), work, keyframes=1, steps=1)
    task.prepare()
    return task


@pytest.fixture(scope="module")
def compressors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    return {
        one.name: one for one in (
            Ours("onnxruntime", "fp32"), Ours("onnxruntime", "int8"), rival(folder, "copies", COPIES),
            rival(folder, "fails", FAILS), rival(folder, "leaves-nothing", LEAVES_NOTHING),
            rival(folder, "runs-itself", RUNS_ITSELF, TORCH),
        )
    }  # fmt: skip


@pytest.fixture(scope="module")
def file(task, compressors, tmp_path_factory):
    file = ResultFile(tmp_path_factory.mktemp("result") / "result.json", lambda text: None)
    measure(task, list(compressors.values()), file, rounds=2)
    return file


@pytest.fixture(scope="module")
def result(file):
    return file.read()


def stages_of(task, recipe):
    return [stage.name for stage in _compressing(task.bundle("onnxruntime", read_recipe(recipe)).engines["unet"])]


def test_a_recipe_takes_the_time_of_its_own_stages(task):
    steps = ("measure activations", "write ONNX", "compile for onnxruntime")
    assert stages_of(task, "int8") == [f"unet: {step}, int8" for step in steps]


def test_a_mixed_recipe_takes_what_the_choice_among_all_components_takes_too(task):
    names = stages_of(task, "mixed")
    assert len(set(names)) == len(names) == 3 + 1 + 2 * len(COMPONENTS)
    for component in COMPONENTS:
        assert f"{component}: try choices, mixed" in names
        assert f"{component}: measure the layers' sensitivity, mixed" in names


def test_the_error_is_relative_to_the_length_of_the_reference():
    found = distances([np.array([3.0, 4.5]), np.array([0.0, 2.0])], [np.array([3.0, 4.0]), np.array([0.0, 1.0])])
    assert found["relative_l2"] == {"mean": 0.55, "max": 1.0}  # 0.5 of 5, and 1 of 1
    assert found["psnr_db"] == {"mean": 6.02, "min": 3.01}  # ranges of 1, mean squares of 1/8 and 1/2


def test_equal_outputs_have_no_psnr():
    one = np.arange(3.0)
    assert distances([one], [one]) == {"relative_l2": {"mean": 0.0, "max": 0.0}, "psnr_db": None}


def test_an_output_with_not_a_number_in_it_is_no_result():
    with pytest.raises(OutzoomError, match="not finite"):
        distances([np.array([np.nan, 1.0])], [np.array([0.0, 1.0])])


def test_outputs_that_are_too_few_are_no_result():
    with pytest.raises(ValueError, match="zip"):
        distances([], [np.zeros(2)])


def test_engines_are_timed_in_groups_that_fit_into_memory_with_the_reference_in_each():
    peaks_bytes = {"fp32": 4, "a": 2, "b": 3, "c": 1, "large": 9, "d": 1}
    groups = in_memory(peaks_bytes, "fp32", 9)
    assert groups == [["fp32", "a", "b"], ["fp32", "c"], ["fp32", "large"], ["fp32", "d"]]
    assert in_memory({"fp32": 4}, "fp32", 9) == [["fp32"]]


def test_a_command_that_says_much_is_not_stopped_by_a_full_pipe_and_its_last_words_are_kept():
    talks = "import sys; sys.stderr.write('x' * 1_000_000 + 'the end'); sys.exit(3)"
    with pytest.raises(OutzoomError, match=r"^exit code 3 after ") as caught:
        run_measured([sys.executable, "-c", talks])
    assert str(caught.value).endswith("the end")


def test_the_memory_of_a_command_is_that_of_the_child_that_took_the_most():
    child = "import time; b = b'x' * 200_000_000; time.sleep(1)"
    parent = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}])'
    assert 200e6 < run_measured([sys.executable, "-c", parent])["peak_rss_bytes_of_any_process"] < 400e6


def test_an_engine_in_its_process_makes_what_it_makes_here(task):
    engine = EngineFile("onnxruntime", task.model, "float32")
    here = backend_for("onnxruntime").load(task.model, Loading())
    with np.load(task.held_out[0]) as stored:
        (expected,) = here.run(dict(stored)).values()
    run = outputs(engine, task.held_out)[0]
    np.testing.assert_array_equal(run.output, expected)
    assert run.milliseconds > 0
    assert run.peak_rss_bytes > 20e6


def test_an_engine_that_is_none_says_why(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(OutzoomError, match="can't load"):
        EngineProcess(EngineFile("onnxruntime", tmp_path / "model.onnx", "float32"))


def test_an_engine_that_gets_the_wrong_feeds_says_why_and_its_process_ends(task, tmp_path):
    np.savez(tmp_path / "feeds.npz", picture=np.zeros(3))
    with loaded(EngineFile("onnxruntime", task.model, "float32")) as process:
        with pytest.raises(OutzoomError, match="sample"):
            process.run(tmp_path / "feeds.npz")
        with pytest.raises((OutzoomError, OSError)):
            process.run(task.held_out[0])


def test_every_engine_takes_part_in_each_round(task):
    engine = EngineFile("onnxruntime", task.model, "float32")
    samples_ms = time_in_turn({"one": engine, "other": engine}, task.held_out[0], rounds=3)
    assert [(name, len(ms)) for name, ms in samples_ms.items()] == [("one", 3), ("other", 3)]


def test_the_held_out_feeds_are_of_another_prompt_and_other_noise(task):
    given, other = (
        {name: [np.load(file)[name] for file in files] for name in ("sample", "timestep", "encoder_hidden_states")}
        for files in (task.feeds, task.held_out)
    )
    assert not any(np.array_equal(one, its) for one in given["sample"] for its in other["sample"])
    unknown = [
        its for its in other["encoder_hidden_states"]
        if not any(np.array_equal(one, its) for one in given["encoder_hidden_states"])
    ]  # fmt: skip
    assert len(unknown) == len(task.held_out) / 2  # the runs with the prompt; those without are alike


def test_the_model_that_rivals_read_shares_its_weights_file_with_nobody(task):
    assert {file.name: file.stat().st_nlink for file in task.model.parent.iterdir()} == {
        "model.onnx": 1, "model.onnx.data": 1,
    }  # fmt: skip


def test_a_copy_of_the_reference_is_equal_to_it(result):
    copied = result["results"]["copies"]
    assert copied["psnr_db"] is None
    assert copied["peak_rss_bytes"] == 5
    assert copied["size_bytes"] == result["results"]["outzoom-onnxruntime-fp32"]["size_bytes"]


def test_a_recipe_is_smaller_than_the_reference_and_near_it(result):
    exact, ours = (result["results"][f"outzoom-onnxruntime-{recipe}"] for recipe in ("fp32", "int8"))
    assert ours["size_bytes"] < exact["size_bytes"] / 2
    assert 0 < ours["relative_l2"]["mean"] <= ours["relative_l2"]["max"] < 0.2
    assert any("measure activations" in name for name in ours["stages"])


def test_what_fails_is_a_result_with_the_last_words_of_the_script(result):
    assert result["results"]["fails"]["error"].strip().endswith("no such operator")
    assert "DIR/models/fails" in result["results"]["fails"]["error"]  # no folder of this machine
    assert "left no engine" in result["results"]["leaves-nothing"]["error"]


def test_a_script_that_runs_the_model_itself_is_compared_by_the_outputs_it_leaves(result):
    own = result["results"]["runs-itself"]
    assert own["size_bytes"] == 3
    assert own["step_seconds"] == [2, 1]
    assert own["relative_l2"]["mean"] > 0


def test_the_engines_that_work_are_timed_beside_the_reference(result):
    timed = result["timing"]["onnxruntime"]["engines"]
    assert set(timed) == {"outzoom-onnxruntime-fp32", "outzoom-onnxruntime-int8", "copies"}
    assert timed["outzoom-onnxruntime-fp32"]["ratio_to_fp32"] == {"median": 1.0, "p10": 1.0, "p90": 1.0}


def test_a_second_run_measures_nothing_that_is_there_and_an_only_what_it_names(task, compressors, file, result):
    before = {name: runs_of(compressors[name]) for name in ("copies", "fails", "runs-itself")}
    measure(task, list(compressors.values()), file, rounds=2)
    assert file.read() == result
    assert {name: runs_of(compressors[name]) for name in before} == before
    measure(task, list(compressors.values()), file, rounds=2, only=["fail*"], again=True)
    assert {name: runs_of(compressors[name]) - count for name, count in before.items()} == {
        "copies": 0, "fails": 1, "runs-itself": 0,
    }  # fmt: skip


def test_a_model_that_is_gone_is_made_again(task, compressors, file, result):
    before = runs_of(compressors["copies"])
    engine = compressors["copies"].engine(task, result["results"]["copies"])
    engine.path.unlink()
    measure(task, list(compressors.values()), file, rounds=2)
    assert runs_of(compressors["copies"]) == before + 1
    assert engine.path.is_file()


def test_an_environment_that_is_missing_is_named_with_the_file_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="nncf") as caught:
        rivals(tmp_path)
    assert "nncf.txt" in caught.value.hint


@pytest.mark.rivals
@pytest.mark.skipif(not ENVIRONMENTS, reason="OUTZOOM_RIVALS names no folder of environments")
def test_every_rival_compresses_the_demo_model(stage_cache, tmp_path):
    from conftest import DEMO

    (tmp_path / "cache").symlink_to(stage_cache)
    file = ResultFile(tmp_path / "result.json", lambda text: None)
    found = rivals(Path(ENVIRONMENTS))
    references = [Ours(target, "fp32") for target in ("openvino-cpu", "onnxruntime")]
    measure(Task(str(DEMO), tmp_path, keyframes=1, steps=1), [*references, *found], file, rounds=1)
    result = json.loads(file.path.read_text())
    for one in found:
        assert result["results"][one.name]["relative_l2"]["mean"] < 0.2, one.name
