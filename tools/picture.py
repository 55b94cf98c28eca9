"""Takes the pictures of README and the quickstart: the demo in `vlpipe ui`, by a headless Chromium.

    make demo && python tools/picture.py

Needs Chromium on the PATH and playwright, which `make` installs. Writes rows.png and scores.png to docs/pictures.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
STEP = "filtered@1"
VIEWS = {
    "rows": (f"#/0/rows?step={STEP}", 686),
    "scores": (f"#/0/scores?step={STEP}", 700),
}  # height in pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=HERE / "runs/blip_capfilt")
    parser.add_argument("--out", type=Path, default=HERE / "docs/pictures")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: there is no chromium or google-chrome on the PATH")
    folders = sorted(args.root.glob(f"{STEP}-*"))
    if not folders:
        sys.exit(f"error: there is no step {STEP} in {args.root}; `make demo` makes it")
    call = [sys.executable, "-m", "vlpipe.pipeline.cli.main", "ui", str(args.root)]
    server = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as tools:
            started = tools.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            args.out.mkdir(parents=True, exist_ok=True)
            for name, (where, height) in VIEWS.items():
                page = started.new_page(viewport={"width": 1280, "height": height})
                page.goto(url + where.replace(STEP, folders[-1].name))
                page.wait_for_load_state("networkidle")
                page.screenshot(path=args.out / f"{name}.png")
            started.close()
    finally:
        server.terminate()
    print(args.out)


if __name__ == "__main__":
    main()
