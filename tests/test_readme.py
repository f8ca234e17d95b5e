from outzoom.benchmarks.readme import ROOT, updated


def test_the_numbers_in_the_readme_are_those_of_the_committed_results():
    """Run `python -m outzoom.benchmarks.readme` after a result changed."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert updated(text) == text


def test_pictures_and_pages_that_the_readme_shows_exist():
    import re

    text = (ROOT / "README.md").read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
