"""Atomic writing: complete or not at all, whatever ends the process."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outzoom.runtime import files
from outzoom.runtime.errors import OutzoomError, UserError
from outzoom.runtime.files import atomic_directory, atomic_file, sha256_of

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and locks")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A child that prints one line once it is in the middle of its writing."""
    head = "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    return child


WRITE_FOR_EVER = """
from outzoom.runtime.files import atomic_file, atomic_directory
with (atomic_file if sys.argv[2] == "file" else atomic_directory)(sys.argv[1]) as partial:
    (partial if sys.argv[2] == "file" else partial / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def run_on_tiny_disk(folder: Path, kilobytes: int, script: str) -> str:
    """The output of a script; its sys.argv[1] is a real filesystem of that size in a namespace of its own."""
    mount = f"mount -t tmpfs -o size={kilobytes}k none {folder}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode:
        pytest.skip("user namespaces are not available, so no small filesystem can be made")
    command = ["unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-c", script]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with path.open() as reader:
        with atomic_file(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old"
            assert partial.parent == tmp_path and partial.suffix == ".txt"
        assert path.read_text() == "new"
        assert os.name == "nt" or reader.read() == "old"  # replaced whole, not overwritten
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_partial(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a" / "b" / "out.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "a" / "b" / "out.txt").read_text() == "new"


@posix_only
def test_a_file_gets_the_rights_that_open_would_give(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_file(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@posix_only
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_file(tmp_path / "link.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@posix_only
def test_what_is_not_a_regular_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/null would be: replacing that breaks the machine
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match="not a regular file"), atomic_file(tmp_path / name):
            pytest.fail("the block must not start")
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_path_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out.txt", tmp_path / ("n" * 300)):
        for writing in (atomic_file, atomic_directory):
            with pytest.raises(UserError, match="cannot write") as caught, writing(path):
                pytest.fail("the block must not start")
            assert caught.value.hint


def test_a_name_of_the_greatest_length_works(tmp_path: Path) -> None:
    name = "ü" * 125 + ".txt"  # 254 bytes of the 255 allowed
    with atomic_file(tmp_path / name) as partial:
        partial.write_text("new")
    assert names(tmp_path) == [name]


@posix_only
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_ctrl_c_from_outside_leaves_nothing(tmp_path: Path, kind: str) -> None:
    child = start(WRITE_FOR_EVER, tmp_path / "out", kind)
    assert len(names(tmp_path)) == 1
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    assert names(tmp_path) == []


@posix_only
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_partials_of_a_killed_process_go_the_next_time(tmp_path: Path, kind: str) -> None:
    child = start(WRITE_FOR_EVER, tmp_path / "out", kind)
    child.kill()
    child.communicate(timeout=30)
    (leftover,) = names(tmp_path)
    assert leftover.startswith(f".partial-{child.pid}-")
    with atomic_file(tmp_path / "other"):
        assert leftover in names(tmp_path)
    with (atomic_file if kind == "file" else atomic_directory)(tmp_path / "out"):
        assert leftover not in names(tmp_path)
    assert names(tmp_path) == ["other", "out"]


@posix_only
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_partials_of_a_live_process_stay(tmp_path: Path, kind: str) -> None:
    child = start(WRITE_FOR_EVER, tmp_path / "out", kind)
    (theirs,) = names(tmp_path)
    with (atomic_file if kind == "file" else atomic_directory)(tmp_path / "out"):
        pass
    assert names(tmp_path) == [theirs, "out"]
    child.kill()
    child.communicate(timeout=30)


def test_two_writers_in_one_process_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_file(path) as first:
        first.write_text("first")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_a_directory_is_replaced_whole_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    with atomic_directory(path) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").touch()
        assert names(path) == ["old"]
    assert names(path) == ["sub"]
    assert names(path / "sub") == ["new"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_directory(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(error), atomic_directory(path) as partial:
        (partial / "half").touch()
        raise error
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_directory_is_exchanged_in_one_step_where_the_kernel_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this kernel or filesystem cannot exchange two names")

    def rename(self: Path, target: Path) -> Path:
        pytest.fail("between two renames the directory would be missing")

    monkeypatch.setattr(Path, "rename", rename)
    with atomic_directory(tmp_path / "one") as partial:
        (partial / "new").touch()
    assert names(tmp_path / "one") == ["new"]
    assert names(tmp_path) == ["one", "other"]


def test_a_directory_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path = tmp_path / "bundle"
    for version in ("one", "two"):
        with atomic_directory(path) as partial:
            (partial / version).touch()
        assert names(path) == [version]
    assert names(tmp_path) == ["bundle"]


def test_the_old_directory_comes_back_if_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), atomic_directory(path) as partial:
        rename = Path.rename

        def rename_after_loss(self: Path, target: Path) -> Path:
            if self == partial:
                raise FileNotFoundError("gone")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", rename_after_loss)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_directory_without_the_marker_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").touch()
    with (
        pytest.raises(UserError, match=r"holds no bundle\.json") as caught,
        atomic_directory(tmp_path / "letters", marker="bundle.json"),
    ):
        pytest.fail("the block must not start")
    assert "another folder" in caught.value.hint
    assert names(tmp_path / "letters") == ["love.txt"]
    (tmp_path / "letters" / "love.txt").rename(tmp_path / "letters" / "bundle.json")
    with atomic_directory(tmp_path / "letters", marker="bundle.json") as partial:
        (partial / "new").touch()
    assert names(tmp_path / "letters") == ["new"]


def test_a_full_disk_is_explained_and_cleaned_up(tmp_path: Path) -> None:
    """On a real 256 kB filesystem; numpy and Pillow raise without an error number there."""
    script = """
import sys, numpy as np
from pathlib import Path
from outzoom.runtime.errors import OutzoomError, UserError
from outzoom.runtime.files import atomic_directory, atomic_file
from outzoom.runtime.images import save_png
noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
folder = Path(sys.argv[1])

def plain():
    with atomic_file(folder / "plain") as partial:
        partial.write_bytes(noise.tobytes())

def tofile():
    with atomic_file(folder / "tofile") as partial:
        noise.tofile(partial)

def directory():
    with atomic_directory(folder / "directory") as partial:
        for number in range(100):
            (partial / str(number)).write_bytes(bytes(10_000))

for writing in (plain, tofile, directory, lambda: save_png(noise, folder / "png")):
    try:
        writing()
    except OutzoomError as error:
        assert not isinstance(error, UserError)
        print(error, error.hint, sep="|")
    assert not list(folder.iterdir())
"""
    lines = run_on_tiny_disk(tmp_path, 256, script).splitlines()
    assert len(lines) == 4
    for line, name in zip(lines, ("plain", "tofile", "directory", "png"), strict=True):
        message, hint = line.split("|")
        assert f"disk is full: {tmp_path / name} was being written" in message
        assert "now that they are removed, 0.3 MB are free" in message
        assert "free some space" in hint


def test_a_disk_that_fills_up_while_syncing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network filesystems report a full disk only then, which no filesystem here does: fsync is replaced."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutzoomError, match="disk is full"), atomic_file(tmp_path / "out") as partial:
        partial.write_bytes(bytes(3_000_000))
    assert names(tmp_path) == []


def test_other_errors_of_the_block_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.binary(max_size=100))
def test_sha256_equals_hashlib_and_reports_every_byte(
    tmp_path_factory: pytest.TempPathFactory, mebibytes: int, tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("sha") / "data"
    path.write_bytes(b"outzoom!" * 131_072 * mebibytes + tail)
    counts: list[int] = []
    assert sha256_of(path, counts.append) == hashlib.sha256(path.read_bytes()).hexdigest() == sha256_of(path)
    assert sum(counts) == path.stat().st_size
