"""Prompt files: what is painted when, and what is wrong with a file, line by line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outzoom.runtime import PicturesIgnoredWarning, Prompts, UserError, read_prompts
from outzoom.runtime.prompts import MAX_FILE_BYTES, MAX_ROWS

TEXT = """\
# a way up
before: oil painting of
after:  , detailed
negative: people, text

0   a coral reef   with red fish
4   a quiet sea
12  # stars
"""
EXTENSION = {
    "prePrompt": "oil painting of",
    "prompts": {"headers": ["outpaint steps", "prompt"], "data": [[4, "a sea"], ["0", "a reef "], ["", ""], [9.0, ""]]},
    "postPrompt": "detailed",
    "negPrompt": "people",
    "seed": 3,
}


@pytest.fixture
def read(tmp_path):
    """Read prompts from text, bytes or what becomes JSON."""

    def read(content, first=None):
        path = tmp_path / "prompts.txt"
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_prompts(path, first)

    return read


def test_each_row_is_painted_until_the_next_one(read):
    prompts = read(TEXT)
    reef, sea = "oil painting of a coral reef with red fish , detailed", "oil painting of a quiet sea , detailed"
    assert [prompts.at(i, 100.0) for i in (0, 1, 3, 4, 11)] == [reef, reef, reef, sea, sea]
    assert prompts.at(12, 0.0) == prompts.at(10**6, 0.0) == "oil painting of # stars , detailed"
    assert prompts.negative == "people, text"


@pytest.mark.parametrize("times", ["0s 1.5s 60s 3661s", "0:00 0:1.5 1:00 1:01:01", "0s 1.5s 1:0 61:01"])
def test_times_are_seconds_or_have_colons(read, times):
    zero, half, minute, hour = times.split()
    prompts = read(f"{zero} a\n{half} b\n{minute} c\n{hour} d\n")
    assert [prompts.at(99, seconds) for seconds in (0, 1.4, 1.5, 59.9, 60.0, 3660, 3661)] == list("aabbccd")


def test_rows_may_come_in_any_order_and_with_any_line_ends(read):
    prompts = read("\ufeff4 b\r\n0 a\r\n8 c")
    assert [prompts.at(i, 0.0) for i in (0, 4, 8)] == ["a", "b", "c"]
    assert prompts.negative is None


def test_what_is_given_first_is_painted_until_the_first_row(read):
    prompts = read("4 b\n", first="a")
    assert [prompts.at(i, 0.0) for i in (1, 3, 4)] == ["a", "a", "b"]
    assert read("1 b\n", first="a").at(1, 0.0) == "b"  # keyframe 0 is the picture that was given


def test_always_is_one_prompt():
    assert {Prompts.always("a").at(i, i / 2) for i in range(5)} == {"a"}


def test_the_extensions_json_counts_keyframes_and_puts_words_around(read):
    prompts = read(EXTENSION)
    assert [prompts.at(i, 0.0) for i in (1, 3)] == ["oil painting of a reef detailed"] * 2
    assert [prompts.at(i, 0.0) for i in (4, 9)] == ["oil painting of a sea detailed", "oil painting of detailed"]
    assert prompts.negative == "people"


def test_pictures_that_the_extensions_json_names_are_not_opened_but_warned_of(read):
    file = {"prompts": {"data": [[0, "a", "/etc/passwd", "", False]]}}
    with pytest.warns(PicturesIgnoredWarning, match="not used"):
        assert read(file).at(1, 0.0) == "a"
    assert read({"prompts": {"data": [[0, "a", "", "", False]]}, "negPrompt": ""}).negative is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0 a\nsea\n", ["line 2", "'sea' does not begin with"]),
        ("0 a\n\n# b\n0 c\n", ["line 4", "keyframe 0 has a prompt already, in line 1"]),
        ("0s a\n4 b\n", ["line 2", "counts in keyframes, the lines before in seconds"]),
        ("0 a\n1.5 b\n", ["line 2", "keyframe 1.5 is not a whole number", "12.5s"]),
        ("0 a\n99999999 b\n", ["line 2", "1e+08 is not within"]),
        ("0 a\n" + "9" * 5000 + " b\n", ["line 2", "inf is not within"]),
        ("0 a\n-1 b\n", ["line 2", "'-1 b' does not begin"]),
        ("befor: a\n0 b\n", ["line 1", "no setting 'befor'", "before, after, negative"]),
        ("after: a\nafter: b\n0 c", ["line 2", "'after' was given already"]),
        ("4 a\n", ["line 1", "nothing says what to paint before", "--prompt"]),
        ("0.5s a\n", ["line 1", "nothing says"]),
        ("# none\n", ["hold no prompt"]),
        ("", ["hold no prompt"]),
        (b"0 a\n4 caf\xe9\n", ["line 2", "not UTF-8"]),
        (b"0 a\n" + b" " * MAX_FILE_BYTES, ["more than 1 MiB"]),
        ("\n".join(f"{i} a" for i in range(MAX_ROWS + 1)), [f"more than {MAX_ROWS} rows"]),
        ("0 a\n\x1b[2J b\n", ["line 2", "\ufffd[2J"]),
        ('{\n"prompts": {\n"data": [[0, "a"]],}}', ["line 3", "no JSON"]),
        ("{", ["line 1", "no JSON"]),
        ('{"a":' * 200_000, ["JSON"]),
        ({}, ["missing required field `prompts`"]),
        ({"prompts": []}, ["Expected `object`, got `array` - at `$.prompts`"]),
        ({"prompts": {"data": [[0, "a"]]}, "negPrompt": 3}, ["Expected `str | null`, got `int` - at `$.negPrompt`"]),
        ({"prompts": {"data": []}}, ["hold no prompt"]),
        ({"prompts": {"data": [[0, "a"], 7]}}, ["row 2", "[step, prompt]"]),
        ({"prompts": {"data": [[0, "a"], [1]]}}, ["row 2", "[step, prompt]"]),
        ({"prompts": {"data": [[0, "a"], [1, None]]}}, ["row 2", "[step, prompt]"]),
        ({"prompts": {"data": [["x", "a"]]}}, ["row 1", "'x' is not a whole number"]),
        ({"prompts": {"data": [[0.5, "a"]]}}, ["row 1", "'0.5' is not a whole number"]),
        ({"prompts": {"data": [[True, "a"]]}}, ["row 1", "'True' is not a whole number"]),
        ({"prompts": {"data": [["inf", "a"]]}}, ["row 1", "'inf' is not a whole number"]),
        ({"prompts": {"data": [[10**400, "a"]]}}, ["is not"]),
        ({"prompts": {"data": [[-1, "a"]]}}, ["row 1", "-1 is not within"]),
        ({"prompts": {"data": [[0, "a"], ["0", "b"]]}}, ["row 2", "keyframe 0 has a prompt already, in row 1"]),
        ({"prompts": {"data": [[3, "a"]]}}, ["row 1", "nothing says what to paint before"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else repr(value)[:30],
)
def test_what_is_wrong_is_said_with_the_line_or_the_row(read, content, words):
    with pytest.raises(UserError) as caught:
        read(content)
    text = f"{caught.value} | {caught.value.hint}"
    for word in ["prompts.txt", *words]:
        assert word in text


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot read the prompts"):
        read_prompts(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.text(alphabet='0123456789:.s {}[]",\nabpromtd', max_size=80)))
def test_any_bytes_are_prompts_or_a_clear_error(read, content):
    try:
        assert read(content).rows
    except UserError as error:
        assert "prompts" in str(error)
