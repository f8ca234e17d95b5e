"""The build engine: what is there is not made again, what failed leaves nothing, processes end with their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from outzoom.export import stages
from outzoom.export.stages import Stage
from outzoom.runtime import OutzoomError, UserError
from outzoom.runtime.errors import MissingPackageError

# What the stages of these tests do: functions of this module, so that the processes can import them.


def join(folder: Path, *needed: Path, text: str = "") -> None:
    (folder / "text").write_text("".join((need / "text").read_text() for need in needed) + text)


def fail(folder: Path, *_: Path, error: Exception) -> None:
    (folder / "half").write_text("made")
    raise error


def die(folder: Path) -> None:
    (folder / "half").write_text("made")
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path, *, size_bytes: int) -> None:
    bytearray(b"x") * size_bytes


def stage(name, *needs, work=join, **arguments):
    arguments = arguments or {"text": name}
    return Stage(name, work, {"text": repr(arguments)}, arguments, needs)


def run(cache, *wanted, jobs=1):
    events = []
    stages.run(list(wanted), cache, jobs, events.append)
    return [(event.kind, event.stage.name) for event in events]


def text_of(stage, cache):
    return (stage.folder(cache) / "text").read_text()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_stage_gets_what_those_that_it_needs_made(tmp_path, jobs):
    a, b = stage("a"), stage("b")
    c = stage("c", a, b)
    d = stage("d", c, a)
    events = run(tmp_path, d, jobs=jobs)
    assert text_of(d, tmp_path) == "abcad"
    assert sorted(name for kind, name in events if kind == "done") == ["a", "b", "c", "d"]
    assert events.index(("done", "b")) < events.index(("start", "c"))


def test_what_is_there_is_skipped_and_what_only_it_needs_is_not_looked_at(tmp_path):
    a = stage("a")
    b = stage("b", a)
    c = stage("c", b)
    run(tmp_path, b)
    (a.folder(tmp_path) / "stage.json").unlink()
    assert run(tmp_path, c) == [("skip", "b"), ("start", "c"), ("done", "c")]
    assert run(tmp_path, c) == [("skip", "c"), ("skip", "b")]


def test_a_key_changes_with_everything_that_the_result_depends_on():
    a = stage("a")
    keys = {
        stage("b", a).key,
        stage("b").key,
        stage("b", a, text="other").key,
        stage("b", stage("a", text="other")).key,
        stage("b", a, work=fail).key,
    }
    assert len(keys) == 5
    assert stage("b", a).key in keys


def test_arguments_that_are_no_part_of_the_identity_do_not_change_the_key():
    assert Stage("a", join, {"x": 1}, {"text": "here"}).key == Stage("a", join, {"x": 1}, {"text": "there"}).key


@pytest.mark.parametrize(
    "error",
    [
        UserError("it is wrong", hint="do it right"),
        MissingPackageError("torch", "export", "this"),
        MemoryError(),
        PermissionError(13, "Permission denied", "file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_error_of_a_stage_comes_as_it_was_raised_and_nothing_half_made_stays(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        run(tmp_path, stage("a", work=fail, error=error))
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "hint", None) == getattr(error, "hint", None)
    assert list(tmp_path.rglob("half")) == []


def test_a_full_disk_is_put_into_words(tmp_path):
    with pytest.raises(OutzoomError, match=r"the disk is full: .* MB are free"):
        run(tmp_path, stage("a", work=fail, error=OSError(28, "No space left on device")))


def test_an_unexpected_error_tells_where_it_came_from(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)test_stages.*raise error.*ZeroDivisionError: by zero"):
        run(tmp_path, stage("a", work=fail, error=ZeroDivisionError("by zero")))


def test_a_killed_process_is_an_error_that_names_the_stage_and_the_next_run_clears_up(tmp_path):
    with pytest.raises(OutzoomError, match=r"'a' was ended from outside .*-9.*memory") as error:
        run(tmp_path, Stage("a", die, {}))
    assert "--jobs" in error.value.hint
    with pytest.raises(OutzoomError):
        run(tmp_path, Stage("a", die, {}))
    assert len(list(tmp_path.rglob("half"))) == 1  # that of the second run: the first one's is gone


def test_when_one_stage_fails_those_beside_it_are_ended(tmp_path):
    slow = Stage("slow", sleep, {}, {})
    with pytest.raises(UserError):
        run(tmp_path, slow, stage("a", work=fail, error=UserError("no")), jobs=2)
    assert list(tmp_path.iterdir()) == []


def sleep(folder: Path) -> None:
    (folder / "half").write_text("made")
    time.sleep(600)


def test_memory_is_told_of_each_stage_alone(tmp_path):
    large, small = (
        Stage("large", fill, {"n": 1}, {"size_bytes": 300 * 2**20}),
        Stage("small", fill, {}, {"size_bytes": 1}),
    )
    run(tmp_path, large)
    run(tmp_path, small)
    difference = large.record(tmp_path).peak_memory_bytes - small.record(tmp_path).peak_memory_bytes
    assert 290 * 2**20 < difference < 400 * 2**20


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b'{"name": "a", "key": "0", "seconds": 0, "peak_memory_bytes": 0, "finished": ""}']
)
def test_a_result_whose_record_is_damaged_is_made_again(tmp_path, damage):
    a = stage("a")
    run(tmp_path, a)
    (a.folder(tmp_path) / "stage.json").write_bytes(damage)
    assert run(tmp_path, a) == [("start", "a"), ("done", "a")]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_stage_ends_when_the_process_that_began_it_is_killed(tmp_path):
    script = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_stages as t
        from pathlib import Path
        if __name__ == "__main__":
            t.run(Path({str(tmp_path)!r}), t.Stage("slow", t.sleep, {{}}, {{}}))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    child = subprocess.Popen([sys.executable, tmp_path / "script.py"])
    deadline = time.monotonic() + 120
    while not (half := list(tmp_path.rglob("half"))):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.kill()
    child.wait()
    while half[0].exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
