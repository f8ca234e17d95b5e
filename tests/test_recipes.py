"""Recipes: those that come with outzoom, and the errors of those that people write."""

import re

import pytest

from outzoom.export import Recipe, known_recipes, read_recipe
from outzoom.runtime import UserError

GOOD = 'description = "mine"\nweights = "float16"\ncompute = "float32"\nmin_psnr_db = 40\n'


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


def assert_refused(name, *words):
    with pytest.raises(UserError) as error:
        read_recipe(name)
    for word in words:
        assert word in str(error.value)
    return error.value


@pytest.mark.parametrize("name", known_recipes())
def test_a_recipe_that_comes_with_outzoom_reads_under_its_own_name(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_fp32_and_fp16_are_there():
    assert {"fp32", "fp16"} <= set(known_recipes())
    assert read_recipe("fp32").min_psnr_db >= 60  # the parity that every export must have


def test_a_recipe_file_is_named_after_itself_or_as_it_says(write):
    assert read_recipe(write(GOOD)) == Recipe("mine", "mine", "float16", "float32", 40)
    assert read_recipe(write(f'name = "other-2.1"\n{GOOD}')).name == "other-2.1"


@pytest.mark.parametrize(("given", "near"), [("fp23", "fp32"), ("FP16", "fp16"), ("fp 32", "fp32")])
def test_an_unknown_name_comes_with_the_nearest(given, near):
    error = assert_refused(given, f"no recipe '{given}'", "fp16, fp32")
    assert f"did you mean '{near}'?" in error.hint


@pytest.mark.parametrize("given", ["", ".", "../recipes/fp32", "/etc/passwd", "fp32.tom"])
def test_a_path_without_the_ending_is_no_recipe(given):
    assert_refused(given, f"no recipe '{given}'")


def test_a_missing_file_is_named(tmp_path):
    assert "fp32" in assert_refused(str(tmp_path / "mine.toml"), "no recipe file", "mine.toml").hint
    (tmp_path / "folder.toml").mkdir()
    assert_refused(str(tmp_path / "folder.toml"), "no recipe file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("weights = \nx = 1", ["line 1"], id="no TOML"),
        pytest.param(b'description = "\xff"', ["utf-8"], id="not UTF-8"),
        pytest.param("x = " + "[" * 50_000, ["is wrong"], id="deep"),
        pytest.param("", ["`description`"], id="empty"),
        pytest.param(GOOD + "bits = 4\n", ["unknown field `bits`"], id="unknown key"),
        pytest.param(GOOD + "weights = 'float32'\n", ["line 5"], id="a key twice"),
        pytest.param(GOOD.replace("weights", "weight"), ["weight"], id="misspelt key"),
        pytest.param(GOOD.replace("float16", "float8"), ["'float8'", "$.weights"], id="unknown weights"),
        pytest.param(GOOD.replace('"float32"', "32"), ["Expected `str`", "$.compute"], id="a number for a name"),
        pytest.param(GOOD.replace("40", '"40"'), ["Expected `float`", "$.min_psnr_db"], id="text for a number"),
        pytest.param(GOOD.replace("40", "nan"), ["$.min_psnr_db"], id="not a number"),
        pytest.param(GOOD.replace("40", "-1"), ["$.min_psnr_db"], id="below zero"),
        pytest.param(GOOD.replace("40", "inf"), ["$.min_psnr_db"], id="infinite"),
        pytest.param(GOOD + "[[rules]]\nlayer = 'x'\n", ["`layer`", "$.rules", "layers", "sparsify"], id="rule's key"),
        pytest.param(GOOD + "[[rules]]\nengine = 'int2'\n", ["int2", "float16, float32, int4, int8"], id="engine"),
        pytest.param(GOOD + "[[rules]]\nstore = { method = 'gptq' }\n", ["gptq", "are kmeans, int4"], id="method"),
        pytest.param(GOOD + "[[rules]]\nstore = { method = 'kmeans', bits = 9 }\n", ["bits", "<= 8"], id="bits"),
        pytest.param(
            GOOD + "[[rules]]\noperators = ['Add']\n", ["Add", "Conv, Gather, Gemm, MatMul"], id="an operator"
        ),
        pytest.param(
            GOOD + "[[rules]]\nsparsify = { n = 2, m = 4, method = 'wanda' }\n",
            ["are magnitude, sparsegpt"],
            id="sparsify",
        ),
        pytest.param(
            GOOD + "[[rules]]\nstore = { method = 'int4', block = 48 }\n", ["48", "16, 32, 64, 128"], id="a block"
        ),
        pytest.param(
            GOOD + "activations = { ranges = 'mse' }\n", ["`ranges`", "range, symmetric, products"], id="activations"
        ),
    ],
)
def test_a_wrong_recipe_names_the_file_and_the_key(write, text, words):
    error = assert_refused(write(text), "mine.toml", *words)
    assert "docs/recipes.md" in error.hint


@pytest.mark.parametrize("name", ["../../home", "/tmp/x", "a/b", r"a\\b", "..", ".hidden", "", "a b", "x\\n", "x" * 65])
def test_a_name_that_is_no_name_of_a_folder_is_refused(write, name):
    assert_refused(write(f'name = "{name}"\n{GOOD}'), "mine.toml", "$.name")


def test_a_huge_file_is_not_read(write):
    assert_refused(write(b"#" * (2**20 + 1)), "mine.toml", "over 1048576 bytes")


def test_the_documentation_names_every_key():
    from outzoom.export import recipes

    text = (recipes.RECIPES_FOLDER.parent.parent / "docs" / "recipes.md").read_text("utf-8")
    assert set(Recipe.__struct_fields__) - {"name"} <= set(re.findall(r"`(\w+)`", text))
