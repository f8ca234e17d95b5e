"""What the system tells of memory, and amounts of it as people write them."""

import sys

import numpy as np
import pytest

from outzoom.runtime import UserError
from outzoom.runtime.machine import forget_mapped, parse_bytes, peak_rss_bytes, rss_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1GiB", 2**30), ("1.5 GB", 1_500_000_000), ("800MiB", 800 * 2**20), ("512", 512), (" 2gib ", 2**31)],
)
def test_amounts_of_memory_are_read_as_people_write_them(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "a lot", "-1GiB", "1 GiBB", "1e9", "GiB", "1,5GB"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(UserError, match="no amount of memory") as caught:
        parse_bytes(text)
    assert "1GiB" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_mapped_file_is_forgotten_and_read_again_when_it_is_needed(tmp_path):
    file = tmp_path / "weights"
    np.arange(2**23, dtype=np.int64).tofile(file)  # 64 MiB
    mapped = np.memmap(file, np.int64, "r")
    total = int(mapped.sum())
    before = rss_bytes()
    forget_mapped(file)
    assert before - rss_bytes() > 40 * 2**20  # of 64 MiB; other threads allocate meanwhile
    assert int(mapped.sum()) == total
    assert peak_rss_bytes() >= before


def test_a_file_that_is_not_mapped_is_left_alone(tmp_path):
    forget_mapped(tmp_path / "nothing")
