"""Open a report page in headless Chromium: no error in its console, sorting and the theme button work when clicked.

    python docs/check_page.py report.html [--picture page.png] [--dark] [--width 1200]

Not part of the tests, which need no browser: run it after a change to page.css or page.js, and look at the picture.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000")
ERRORS = "<script>window.seen = []; addEventListener('error', (e) => seen.push(e.message)); "
ERRORS += "addEventListener('securitypolicyviolation', (e) => seen.push('loads ' + e.blockedURI));</script>"
CLICKS = """
<script>
addEventListener("load", () => {
  const faults = window.seen, rows = (table) => [...table.tBodies[0].rows];
  let clicked = 0;
  const check = (head, sign, want) => {
    head.firstElementChild.click();
    clicked += 1;
    const table = head.closest("table"), name = head.textContent;
    if (head.getAttribute("aria-sort") !== want) faults.push(`${name}: aria-sort is not ${want}`);
    const found = rows(table).map((row) => row.cells[head.cellIndex].dataset.rank);
    const known = found.filter((rank) => rank !== undefined).map(Number);
    if (found.slice(0, known.length).includes(undefined)) faults.push(`${name}: nothing before something`);
    if (known.some((rank, i) => i && sign * (rank - known[i - 1]) < 0)) faults.push(`${name}: not ${want}`);
  };
  for (const table of document.querySelectorAll("table")) {
    const before = rows(table).length;
    for (const head of table.tHead.rows[0].cells) { check(head, 1, "ascending"); check(head, -1, "descending"); }
    if (table.querySelectorAll("[aria-sort]").length > 1) faults.push("two columns are marked");
    if (rows(table).length !== before) faults.push("rows were lost");
  }
  const paper = () => getComputedStyle(document.body).backgroundColor, was = paper();
  document.getElementById("theme").click();
  if (paper() === was) faults.push("the theme button changes nothing");
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page is wider than the window");
  document.body.innerHTML = "<pre id=verdict></pre>";
  document.getElementById("verdict").textContent = JSON.stringify({ clicked, faults });
});
</script>
"""


def browse(browser: str, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Chromium on a page, with a profile of its own that is thrown away."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def check(browser: str, page: Path, width: int) -> tuple[int, list[str]]:
    """How many heads were clicked in a copy of the page, and what went wrong."""
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "page.html")
        copy.write_text(text.replace("<head>", f"<head>{ERRORS}", 1).replace("</body>", f"{CLICKS}</body>", 1))
        done = browse(browser, copy, "--dump-dom", f"--window-size={width},1000")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="verdict">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None:
        return 0, [*console, "the page's scripts did not come to their end"]
    verdict = json.loads(unescape(found[1]))
    return verdict["clicked"], [*console, *verdict["faults"]]


def main() -> None:
    """Check the page that is named; exits with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--picture", type=Path, help="write what it looks like")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1200, help="of the window, 500 or more in headless Chromium")
    parser.add_argument("--height", type=int, default=1600, help="of the picture")
    asked = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(BROWSERS)}")
    clicked, faults = check(browser, asked.page.resolve(), asked.width)
    if asked.picture is not None:
        scheme = f"--blink-settings=preferredColorScheme={0 if asked.dark else 1}"
        size = f"--window-size={asked.width},{asked.height}"
        browse(browser, asked.page.resolve(), size, scheme, f"--screenshot={asked.picture.resolve()}")
    print(f"{asked.page}: {clicked} clicks, {len(faults)} faults", *faults, sep="\n  ")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
