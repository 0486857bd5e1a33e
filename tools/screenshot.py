"""A picture of an HTML report, as a browser shows it.

    edgekit report out/quickstart --out report.html
    python tools/screenshot.py report.html tools/report.png [--width 1100] [--height 1400] [--dark] [--cost size_bytes]

Needs chromium and chromedriver.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgekit.files import write_bytes
from tests import browser

CHOOSE = """
const item = document.getElementById('cost');
item.value = arguments[0];
item.dispatchEvent(new Event('change'));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--cost", help="what accuracy is plotted against, e.g. size_bytes")
    given = parser.parse_args()
    if reason := browser.missing():
        sys.exit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        write_bytes(given.picture, picture(given, Path(folder)))
    print(f"{given.picture}: {given.picture.stat().st_size / 1e3:.0f} kB")


def picture(given: argparse.Namespace, folder: Path) -> bytes:
    driver = browser.start(folder / "profile")
    try:
        browser.show(driver, given.report.resolve(), given.width, given.dark, given.height)
        if given.cost:
            driver.execute_script(CHOOSE, given.cost)
            driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 500))")  # drawn by then
        taken = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
    finally:
        driver.quit()
    small = io.BytesIO()
    taken.convert("RGB").save(small, "PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    main()
