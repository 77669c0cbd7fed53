"""Pictures of a report for the README: `python scripts/screenshots.py runs/mine/report.html --out docs`.

It writes report.png (1,280 px wide, light) and report_phone.png (390 px, dark); `--all` writes both widths in both. It
needs playwright (`pip install .[dev]`) and Chromium from the system's packages.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image

SIZES = {"report": (1280, 1480), "report_phone": (390, 844)}
COLORS = 128  # of the palette, in which a page of few colors is a fraction as large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--all", action="store_true", help="both widths, light and dark, the whole page")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    schemes = {"report": ("light",), "report_phone": ("dark",)}
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            for scheme in ("light", "dark") if options.all else schemes[name]:
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
                )
                page.goto(options.page.resolve().as_uri())
                path = options.out / (f"{name}_{scheme}.png" if options.all else f"{name}.png")
                page.screenshot(path=path, full_page=options.all)
                page.close()
                Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
