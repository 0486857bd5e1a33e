"""Energy meters on trees of files like those of real machines, and joules of a run."""

import sys
import types

import pytest

from edgekit import energy
from edgekit.energy import meters
from edgekit.energy.meters import Counter, NoMeter, Sampled, ina3221, nvml, rapl


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def zone(root, name, label, energy, span=262143328850):
    return write(root / name, name=label, energy_uj=energy, max_energy_range_uj=span)


@pytest.fixture
def powercap(tmp_path):
    """Two packages, memory beside the first, and what must not be added again."""
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 500)
    zone(tmp_path, "intel-rapl:0:1", "dram", 2_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 99, span=99)
    zone(tmp_path, "intel-rapl:2", "psys", 3_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 7)
    write(tmp_path / "intel-rapl", enabled=1)
    return tmp_path


def test_rapl_adds_packages_and_memory(powercap):
    meter = rapl(powercap)
    assert meter.what == "RAPL, package-0 + dram + package-1"

    def work():
        for name, value in (("0", 1_500_000), ("0:0", 9_999), ("0:1", 12_000), ("2", 10**9)):
            (powercap / f"intel-rapl:{name}" / "energy_uj").write_text(str(value))

    assert meter.joules(work) == pytest.approx(0.51)
    assert meter.joules(lambda: None) == 0


def test_rapl_counts_on_where_a_counter_begins_again(powercap):
    """The second package's counter goes from 99, its last value, over 0 to 4."""
    meter = rapl(powercap)
    found = meter.joules(lambda: (powercap / "intel-rapl:1" / "energy_uj").write_text("4"))
    assert found == pytest.approx(5e-6)


def test_rapl_that_only_root_may_read(powercap, monkeypatch):
    def denied(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(meters, "_number", denied)
    with pytest.raises(NoMeter, match=r"sudo chmod a\+r .*intel-rapl:\*/energy_uj"):
        rapl(powercap)


def test_no_rapl(tmp_path):
    with pytest.raises(NoMeter, match="no RAPL zones under"):
        rapl(tmp_path / "powercap")


def test_a_sensor_that_gives_no_number(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").write_text("<unsupported>")
    with pytest.raises(NoMeter, match="energy_uj: holds '<unsupported>', no number"):
        rapl(powercap)


def hwmon(root, *rails):
    chip = write(root / "hwmon3", name="ina3221")
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        write(chip, **{f"in{channel}_label": label, f"in{channel}_input": millivolts})
        write(chip, **{f"curr{channel}_input": milliamperes})
    write(root / "hwmon0", name="acpitz", in1_label="VDD_IN", in1_input=9000, curr1_input=9000)
    return root


def test_a_jetson_board_is_metered_at_the_rail_that_feeds_it(tmp_path):
    root = hwmon(tmp_path, ("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 500), ("VDD_SOC", 5000, 300))
    meter = ina3221(root, tmp_path / "none")
    assert meter.what == "INA3221, VDD_IN" and meter.watts() == pytest.approx(10.0)


def test_rails_are_added_where_none_feeds_all(tmp_path):
    root = hwmon(tmp_path, ("VDD_GPU_SOC", 20000, 500), ("VDD_CPU_CV", 20000, 100))
    assert ina3221(root, tmp_path / "none").watts() == pytest.approx(12.0)


def test_the_older_form_of_the_sensor_gives_milliwatts(tmp_path):
    device = write(tmp_path / "iio:device0", rail_name_0="POM_5V_IN", in_power0_input=4321, rail_name_1="POM_5V_GPU")
    write(device, in_power1_input=1000)
    assert ina3221(tmp_path / "none", tmp_path).watts() == pytest.approx(4.321)


def test_no_ina3221(tmp_path):
    with pytest.raises(NoMeter, match="no INA3221 under"):
        ina3221(tmp_path, tmp_path)


def test_a_sampled_power_is_multiplied_by_the_time():
    clock = iter([10.0, 12.5])
    meter = Sampled("board", 0.01, lambda: 4.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meters.time, "perf_counter", lambda: next(clock))
        assert meter.joules(lambda: None) == pytest.approx(10.0)


def fake_nvml(monkeypatch, count=1, error=None):
    class NVMLError(Exception):
        pass

    used = iter(range(5_000, 9_000, 1_500))

    def consumption(_card):
        if error:
            raise NVMLError(error)
        return next(used)

    module = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=consumption,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)


def test_nvml_counts_millijoules(monkeypatch):
    fake_nvml(monkeypatch)
    assert nvml().joules(lambda: None) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"error": "Not Supported"}, "no energy here: Not Supported"), ({"count": 0}, "no graphics card")],
)
def test_no_nvml(monkeypatch, given, message):
    fake_nvml(monkeypatch, **given)
    with pytest.raises(NoMeter, match=message):
        nvml()


def test_nvml_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoMeter, match=r"pip install 'edgekit\[nvml\]'"):
        nvml()


@pytest.fixture
def counted(monkeypatch):
    """A meter and an engine whose sessions take 2 J a run in the first file and 3 J in the second."""
    spent = [0]

    class Session:
        batch, shape, dtype = 1, (1, 1, 1), None

        def __init__(self, path):
            self.cost = {"a": 2, "b": 3}[path.name]

        def run(self, _feed):
            spent[0] += self.cost

    monkeypatch.setattr(
        energy, "engine", lambda _name: types.SimpleNamespace(load=lambda path, _threads: Session(path))
    )
    return Counter("test", 0.002, 1.0, lambda: list(spent), [1 << 60])


def test_joules_of_a_run(counted, tmp_path):
    idle_w, joules = energy.measure(counted, [tmp_path / "a", tmp_path / "b"], "test", 1)
    assert idle_w == [0.0] * energy.WINDOWS
    assert joules == [[2.0] * energy.WINDOWS, [3.0] * energy.WINDOWS]


@pytest.mark.usefixtures("counted")
def test_a_counter_that_stands_still_is_no_meter(tmp_path):
    still = Counter("still", 0.002, 1.0, lambda: [7], [1 << 60])
    with pytest.raises(NoMeter, match="still: does not move"):
        energy.measure(still, [tmp_path / "a"], "test", 1)


def document(*names):
    settings = {"engines": {"onnxruntime": "1"}, "threads": 1, "batch": 1}
    return {"rows": [{"file": name, "engine": "onnxruntime"} for name in names], "settings": settings}


def test_the_profile_gets_joules_where_there_is_a_meter(counted, tmp_path, monkeypatch):
    monkeypatch.setitem(meters.METERS, "ina3221", lambda: counted)
    found = energy.with_energy(document("a", "b"), {"onnxruntime": {name: tmp_path / name for name in "ab"}})
    assert [row["energy_j"]["median"] for row in found["rows"]] == [2.0, 3.0]
    assert found["energy"]["onnxruntime"]["meter"] == "test"


def test_the_profile_says_what_meters_it_looked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(meters.METERS, "ina3221", lambda: ina3221(tmp_path, tmp_path))
    monkeypatch.setitem(meters.METERS, "rapl", lambda: rapl(tmp_path))
    found = energy.with_energy(document("a"), {"onnxruntime": {"a": tmp_path / "a"}})
    assert "energy_j" not in found["rows"][0]
    assert "INA3221" in found["energy"]["onnxruntime"]["missing"]
    assert "RAPL" in found["energy"]["onnxruntime"]["missing"]
