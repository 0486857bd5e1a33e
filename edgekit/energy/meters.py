"""Energy meters: what a machine says of the energy it takes. A finder gives the meter of this machine, or raises
NoMeter with what is missing and how to get it.

Sources: Linux's documentation of powercap (zones, energy_uj, max_energy_range_uj) and of the ina3221 driver (millivolts
and milliamperes by channel); NVIDIA's NVML reference (nvmlDeviceGetTotalEnergyConsumption, Volta and newer). The boards
whose sensors are read here were not at hand: only trees of files like theirs.
"""

from __future__ import annotations

import abc
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
IIO = Path("/sys/bus/iio/devices")
BOARD_RAILS = ("VDD_IN", "POM_5V_IN", "VIN", "VIN_SYS_5V0")
"""What Jetson boards call the rail that feeds everything; where there is none, all rails are added."""
SAMPLING_S = 0.01


class NoMeter(Exception):
    """There is no such meter here, or it cannot be read; the message says how to get it."""


class Meter(abc.ABC):
    """Something that tells energy; `what` it is of, `window_s` how long to measure for its resolution not to matter."""

    what: str
    window_s: float

    @abc.abstractmethod
    def joules(self, work: Callable[[], object]) -> float:
        """The energy taken while `work` runs."""


@dataclasses.dataclass(frozen=True)
class Counter(Meter):
    """Counters that only grow, and begin again at 0 after `ranges` units; `unit_j` is what one unit is in joules."""

    what: str
    window_s: float
    unit_j: float
    read: Callable[[], list[int]]
    ranges: list[int]

    def joules(self, work: Callable[[], object]) -> float:
        before = self.read()
        work()
        return self.unit_j * sum((b - a) % size for a, b, size in zip(before, self.read(), self.ranges, strict=True))


@dataclasses.dataclass(frozen=True)
class Sampled(Meter):
    """A power that is sampled by a thread of its own: mean power times time."""

    what: str
    window_s: float
    watts: Callable[[], float]

    def joules(self, work: Callable[[], object]) -> float:
        samples, done = [self.watts()], threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLING_S):
                samples.append(self.watts())

        sampler = threading.Thread(target=sample, daemon=True)
        begin = time.perf_counter()
        sampler.start()
        try:
            work()
        finally:
            seconds = time.perf_counter() - begin
            done.set()
            sampler.join()
        return statistics.fmean(samples) * seconds


def rapl(root: Path = POWERCAP) -> Meter:
    """The processor packages and the memory beside them, of Intel's and AMD's processors.

    A package contains its cores, and the platform (psys) the packages: neither is added again.
    """
    names = {zone: _text(zone / "name") for zone in sorted(root.glob("intel-rapl:*")) if (zone / "name").is_file()}
    zones = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
    if not zones:
        raise NoMeter(
            f"no RAPL zones under {root}: Linux on an Intel or AMD processor has them, most virtual machines do not "
            f"(modprobe intel_rapl_msr)"
        )
    meters = [zone / "energy_uj" for zone in zones]

    def read() -> list[int]:
        return [_number(file) for file in meters]

    try:
        read()
    except PermissionError:
        raise NoMeter(f"only root may read RAPL here; allow it: sudo chmod a+r {root}/intel-rapl:*/energy_uj") from None
    ranges = [_number(zone / "max_energy_range_uj") + 1 for zone in zones]
    return Counter(f"RAPL, {' + '.join(names[zone] for zone in zones)}", 0.5, 1e-6, read, ranges)


def nvml() -> Meter:
    """NVIDIA's graphics cards, all together, without the machine around them."""
    try:
        import pynvml
    except ImportError:
        raise NoMeter("NVML's Python package is not installed; pip install 'edgekit[nvml]'") from None
    try:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

        def read() -> list[int]:
            return [pynvml.nvmlDeviceGetTotalEnergyConsumption(card) for card in cards]

        read()
    except pynvml.NVMLError as error:
        raise NoMeter(f"NVML gives no energy here: {error}") from None
    if not cards:
        raise NoMeter("NVML sees no graphics card here")
    return Counter(f"NVML, {len(cards)} graphics cards", 1.0, 1e-3, read, [1 << 64] * len(cards))


def ina3221(hwmon: Path = HWMON, iio: Path = IIO) -> Meter:
    """The power monitor of Jetson boards: the rail that feeds everything, or the sum of all."""
    rails = _hwmon_rails(hwmon) | _iio_rails(iio)
    if not rails:
        raise NoMeter(f"no INA3221 under {hwmon} or {iio}: NVIDIA's Jetson boards have one")
    chosen = [name for name in BOARD_RAILS if name in rails][:1] or sorted(rails)
    meter = Sampled(f"INA3221, {' + '.join(chosen)}", 1.0, lambda: sum(rails[name]() for name in chosen))
    try:
        meter.watts()
    except PermissionError as error:
        raise NoMeter(f"the INA3221 may not be read here; allow it: sudo chmod a+r {error.filename}") from None
    return meter


METERS: dict[str, Callable[[], Meter]] = {"ina3221": ina3221, "nvml": nvml, "rapl": rapl}
"""In the order of preference."""


def _hwmon_rails(root: Path) -> dict[str, Callable[[], float]]:
    """The rails of JetPack 5 and newer: a channel's millivolts times its milliamperes."""
    chips = [chip for chip in sorted(root.glob("hwmon*")) if _has(chip / "name", "ina3221")]
    labels = [file for chip in chips for file in sorted(chip.glob("in[123]_label"))]
    return {_text(file): _volts_times_amperes(file) for file in labels}


def _volts_times_amperes(label: Path) -> Callable[[], float]:
    channel = label.name[2]
    volts, amperes = label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input")
    return lambda: 1e-6 * _number(volts) * _number(amperes)


def _iio_rails(root: Path) -> dict[str, Callable[[], float]]:
    """The rails of JetPack 4: milliwatts."""
    return {_text(file): _milliwatts(file) for file in sorted(root.glob("*/rail_name_[012]"))}


def _milliwatts(name: Path) -> Callable[[], float]:
    power = name.with_name(f"in_power{name.name[-1]}_input")
    return lambda: 1e-3 * _number(power)


def _has(file: Path, name: str) -> bool:
    return file.is_file() and _text(file) == name


def _text(file: Path) -> str:
    return file.read_text().strip()


def _number(file: Path) -> int:
    """Raises NoMeter for what is no number, as a sensor gives that is switched off."""
    text = _text(file)
    if not text.lstrip("-").isdigit():
        raise NoMeter(f"{file}: holds {text[:20]!r}, no number")
    return int(text)


def found(names: Sequence[str]) -> tuple[Meter | None, dict[str, str]]:
    """The first of these meters that this machine has, and why it does not have those before it."""
    reasons: dict[str, str] = {}
    for name in names:
        try:
            return METERS[name](), reasons
        except (NoMeter, OSError) as error:
            reasons[name] = str(error)
    return None, reasons
