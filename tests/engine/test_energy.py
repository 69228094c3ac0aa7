"""Energy counters, on folders made like the system's."""

import re
from pathlib import Path

import pytest
from tests.tiny_models import TINY_MODELS, save

import fewbits
from fewbits.engine.energy import energy_meter
from fewbits.engine.speed import measure
from fewbits.errors import EngineError
from fewbits.progress import Silent


def put(powercap, zone, name, energy, limit=1000_000_000):
    """A zone of a fake powercap folder."""
    folder = powercap / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    if limit is not None:
        (folder / "max_energy_range_uj").write_text(f"{limit}\n")


@pytest.fixture
def powercap(tmp_path):
    """Two packages with memory, cores within them, the board around them, and a second driver's view of one."""
    (tmp_path / "intel-rapl").mkdir()  # the control type, which has no counter
    for package in (0, 1):
        put(tmp_path, f"intel-rapl:{package}", f"package-{package}", 1_000_000)
        put(tmp_path, f"intel-rapl:{package}:0", "core", 500_000)
        put(tmp_path, f"intel-rapl:{package}:1", "dram", 100_000)
    put(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    put(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    return tmp_path


def test_packages_and_their_memory_count_once_and_nothing_within_or_around_them(powercap):
    meter = energy_meter(powercap)
    before = meter.read()

    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl-mmio:0", "package-0")):
        put(powercap, zone, name, 4_000_000)
    put(powercap, "intel-rapl:1", "package-1", 1_500_000)
    put(powercap, "intel-rapl:0:0", "core", 2_000_000)
    put(powercap, "intel-rapl:1:1", "dram", 350_000)
    put(powercap, "intel-rapl:2", "psys", 20_000_000)

    assert meter.missing == ""
    assert meter.joules_since(before) == pytest.approx(3.0 + 0.5 + 0.25)


def test_a_counter_that_starts_again_goes_on(powercap):
    meter = energy_meter(powercap)
    put(powercap, "intel-rapl:0", "package-0", 999_000_000)
    before = meter.read()

    put(powercap, "intel-rapl:0", "package-0", 2_000_000)

    assert meter.joules_since(before) == pytest.approx(3.0)


def test_a_counter_that_goes_back_without_a_known_end_is_refused(tmp_path):
    put(tmp_path, "intel-rapl:0", "package-0", 5_000, limit=None)
    meter = energy_meter(tmp_path)
    before = meter.read()

    put(tmp_path, "intel-rapl:0", "package-0", 4_000, limit=None)

    with pytest.raises(EngineError, match="went back"):
        meter.joules_since(before)


@pytest.mark.parametrize(
    ("zones", "why"),
    [
        ({}, "no energy counter"),
        ({"intel-rapl:0": ("psys", "1")}, "processor package"),
        ({"intel-rapl:0": ("package-0", "full")}, "can't be read: .*full"),
    ],
)
def test_it_says_why_there_is_nothing_to_read(tmp_path, zones, why):
    for zone, (name, energy) in zones.items():
        put(tmp_path, zone, name, energy)

    meter = energy_meter(tmp_path)

    assert meter.counters == ()
    assert re.search(why, meter.missing)


def test_a_counter_that_only_root_may_read_is_said_to_be_one(powercap, monkeypatch):
    read = Path.read_text

    def refuse(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)

    meter = energy_meter(powercap)

    assert meter.counters == ()
    assert "Permission denied" in meter.missing
    assert "energy_uj" in meter.missing


class Spender(Silent):
    """Lets the counter rise by a joule whenever a repetition ends."""

    def __init__(self, powercap):
        self.powercap, self.joules = powercap, 0

    def advance(self, *_):
        self.joules += 1
        put(self.powercap, "intel-rapl:0", "package-0", 1_000_000 * self.joules)


def test_bench_tells_joules_per_token_or_why_not(tmp_path):
    save(TINY_MODELS["llama"], tmp_path / "hf")
    fewbits.quantize(tmp_path / "hf", tmp_path / "model.gguf", format="Q8_0", effort="fast")
    short = {"prompt": 4, "generate": 2, "repetitions": 3, "threads": 1}
    put(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)

    told = measure(
        tmp_path / "model.gguf",
        **short,
        powercap=tmp_path / "powercap",
        progress=Spender(tmp_path / "powercap"),
    )
    untold = measure(tmp_path / "model.gguf", **short, powercap=tmp_path / "nothing")

    # A joule a repetition; the one before the counted ones is left out.
    assert told.prefill_energy_joules_per_token == pytest.approx(1 / 4)
    assert told.energy_joules_per_token == pytest.approx(1 / 2)
    assert told.energy_missing == ""
    assert "0.5 J for a decoded token" in told.describe()
    assert untold.energy_joules_per_token is untold.prefill_energy_joules_per_token is None
    assert "no energy counter" in untold.energy_missing
    assert f"unknown: {untold.energy_missing}" in untold.describe()
