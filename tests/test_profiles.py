"""Device profiles: that each is whole and says where its figures are from, and what a wrong one is told."""

import pytest

from outzoom.hardware import profiles
from outzoom.hardware.profiles import known_devices, parse_changes, read_profile, with_changes, write_host
from outzoom.runtime.errors import UserError

ASKED_FOR = {
    "jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "intel-npu-3720", "intel-npu-4000", "intel-npu-5",
    "intel-meteor-lake-gpu", "intel-meteor-lake-cpu", "intel-lunar-lake-gpu", "intel-lunar-lake-cpu",
    "intel-panther-lake-gpu", "intel-panther-lake-cpu", "snapdragon-8-gen2", "snapdragon-8-gen3", "snapdragon-8-elite",
    "raspberry-pi-5", "edge-tpu", "tpu-v1", "plain-core",
}  # fmt: skip
GOOD = (profiles.FOLDER / "tpu-v1.toml").read_text("utf-8")


def test_every_device_that_was_asked_for_has_a_profile():
    assert set(known_devices()) >= ASKED_FOR


@pytest.mark.parametrize("name", known_devices())
def test_every_figure_has_a_source(name):
    profile = read_profile(name)
    assert profile.name == name
    for figure in profile.figures.values():
        assert figure.source
        if "remembered" in figure.source:
            assert figure.confidence == "unverified"


def test_peaks_are_those_of_the_units():
    assert read_profile("tpu-v1").peak_tops["int8"].value == pytest.approx(2 * 256 * 256 * 0.7e9 / 1e12, abs=0.01)
    assert read_profile("jetson-orin-nano").peak_tops["int8"].value == pytest.approx(8 * 4096 * 1.02e9 / 1e12, abs=0.05)
    assert read_profile("raspberry-pi-5").peak_tops["float32"].value == pytest.approx(4 * 2 * 4 * 2 * 2.4e9 / 1e12)
    npu = read_profile("intel-npu-4000")
    assert npu.peak_tops["int8"].value == pytest.approx(2 * 6 * 2048 * 1.95e9 / 1e12, abs=0.05)


@pytest.mark.parametrize(
    ("found", "replaced", "message"),
    [
        ("value = 91.75", "value = nan", "peak_tops"),
        ("value = 91.75", "value = inf", "peak_tops"),
        ("value = 91.75", "value = -1", r"peak_tops"),
        ("value = 700", 'value = "fast"', r"clock_mhz.value"),
        ("int8 =", "int2 =", "int2"),
        ("rows = 256", "rows = 0", r"array.rows"),
        ("rows = 256", "rows = 1000000000", r"array.rows"),
        ('kind = "systolic"', 'kind = "quantum"', r"quantum.*\$.kind"),
        ('kind = "systolic"', 'kind = "systolic"\nspeed = 3', "speed"),
        ('confidence = "read"', 'confidence = "sure"', "sure"),
        ("description", "descriptio", r"description|descriptio"),
        ("idle_watts = { value = 28", "idle_watts = { value = 280", r"idle_watts must be below"),
        ("[array]", "[array", r"wrong"),
    ],
)
def test_a_wrong_profile_names_its_file_and_what_is_wrong(tmp_path, found, replaced, message):
    assert found in GOOD
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(found, replaced, 1), "utf-8")
    with pytest.raises(UserError, match=rf"mine\.toml.*({message})"):
        read_profile(str(file))


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"a = " + b"[" * 10_000, b"x" * (2**20 + 1)])
def test_what_is_no_profile_is_refused(tmp_path, data):
    (tmp_path / "p.toml").write_bytes(data)
    with pytest.raises(UserError, match=r"p\.toml"):
        read_profile(str(tmp_path / "p.toml"))


def test_a_profile_of_ones_own_is_read_from_its_path(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD, "utf-8")
    assert read_profile(str(tmp_path / "mine.toml")).name == "mine"
    with pytest.raises(UserError, match="can't be read"):
        read_profile(str(tmp_path / "other.toml"))


def test_an_unknown_device_is_told_the_nearest():
    with pytest.raises(UserError) as error:
        read_profile("jetson-orin-nan")
    assert "jetson-orin-nano" in error.value.hint
    with pytest.raises(UserError):
        read_profile("../devices/tpu-v1")


def test_the_host_has_no_profile_before_it_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "host_file", lambda: tmp_path / "cache" / "host.json")
    with pytest.raises(UserError) as error:
        read_profile("host")
    assert "--calibrate" in error.value.hint
    write_host(read_profile("tpu-v1"))
    assert read_profile("host").peak_tops == read_profile("tpu-v1").peak_tops
    (tmp_path / "cache" / "host.json").write_text("[]")
    with pytest.raises(UserError, match=r"host\.json"):
        read_profile("host")


def test_a_figure_can_be_set_and_a_clock_takes_the_peaks_along():
    base = read_profile("jetson-orin-nano")
    changed = with_changes(base, parse_changes(["bandwidth_gb_per_s=68", "clock_mhz = 612"]))
    assert changed.bandwidth_gb_per_s.value == 68
    assert changed.peak_tops["int8"].value == pytest.approx(base.peak_tops["int8"].value * 612 / 1020)
    assert with_changes(base, {"peak_tops.int8": 10}).peak_tops["int8"].value == 10
    assert base.bandwidth_gb_per_s.value == 102.4


@pytest.mark.parametrize("text", ["bandwidth_gb_per_s", "bandwidth_gb_per_s=fast", "=", "bandwidth_gb_per_s="])
def test_a_change_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        parse_changes([text])


@pytest.mark.parametrize("text", ["bandwidth=3", "clock_mhz=nan", "clock_mhz=0", "on_chip_mb=-1", "idle_watts=99"])
def test_a_change_that_can_not_be_is_refused(text):
    with pytest.raises(UserError):
        with_changes(read_profile("jetson-orin-nano"), parse_changes([text]))
