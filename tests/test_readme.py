import pytest

from outzoom.benchmarks.compression_page import compression
from outzoom.benchmarks.readme import PAGES, ROOT, updated


@pytest.mark.parametrize("page", PAGES)
def test_the_numbers_on_a_page_are_those_of_the_committed_results(page):
    """Run `python -m outzoom.benchmarks.readme` after a result changed."""
    text = (ROOT / page).read_text("utf-8")
    assert updated(page, text) == text


def test_what_could_not_compress_has_a_row_with_the_beginning_and_the_end_of_its_error():
    result = {
        "checkpoint": "demo", "size": 128, "machine": "CPU", "cores": 2, "runs": 8, "held_out_runs": 2, "timing": {},
        "results": {"other-int8": {"load_before": 0.1, "error": "exit code 1: a\nb\nno | memory\n"}},
    }  # fmt: skip
    assert (
        compression(result).splitlines()[-1] == "| other-int8 | fails: exit code 1: no \\| memory |  |  |  |  |  |  |"
    )


def test_pictures_and_pages_that_the_readme_shows_exist():
    import re

    text = (ROOT / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
