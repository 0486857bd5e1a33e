"""How large the HTML report of 20 bundles with 300 layers each is, and how soon a browser has drawn it.

    python tools/benchmarks/report.py      # about a minute; needs chromium and chromedriver

The bundles are made by hand: three files of 300 layers each, with times, traffic and sensitivity of every layer. What
is timed is a fresh load from disk in a browser that runs already, from the request to the last of the plots that are
seen at first, the median of seven. work_s is the processor time of the page's thread in it, which other load on the
machine does not change.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import claim, write

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the bundles and the browser of the tests

from edgekit import report
from tests import browser
from tests.report_bundles import make_bundle

BUNDLES, LAYERS, LOADS = 20, 300, 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        row = {"bundles": BUNDLES, "layers": LAYERS, **made(Path(folder), page), **opened(page, Path(folder))}
        row["load"] = os.getloadavg()[0]
    claims = [
        claim("report.size", "below 10 MB for 20 bundles of 300 layers", row["size_mb"], "MB", row["size_mb"] < 10),
        claim("report.opens", "below 3 s for 20 bundles of 300 layers", row["open_s"], "s", row["open_s"] < 3),
    ]
    write("report", [row], claims)


def made(folder: Path, page: Path) -> dict[str, float]:
    """Write the report of the bundles; its size and what writing took."""
    names = [f"blocks.{index // 3}.{('expand', 'depthwise', 'project')[index % 3]}.conv" for index in range(LAYERS)]
    bundles = [make_bundle(folder / f"bundle-{index:02}", names) for index in range(BUNDLES)]
    begin = time.process_time()
    report.write_page(report.bundle_entries(bundles), page)
    return {"write_cpu_s": time.process_time() - begin, "size_mb": page.stat().st_size / 1e6}


def opened(page: Path, folder: Path) -> dict[str, float]:
    """Medians over fresh loads of the page."""
    driver = browser.start(folder / "profile")
    try:
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        loads = [_load(driver, page) for _ in range(LOADS)]
    finally:
        driver.quit()
    return {key: statistics.median(load[key] for load in loads) for key in loads[0]}


def _load(driver: browser.Any, page: Path) -> dict[str, float]:
    driver.get("about:blank")
    browser.show(driver, page)
    drawn = float(driver.execute_script("return document.documentElement.dataset.drawnMs"))
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    work = next(item["value"] for item in metrics if item["name"] == "TaskDuration")
    return {"open_s": drawn / 1e3, "work_s": work}


if __name__ == "__main__":
    main()
