"""
Looks at every page of the site as a browser shows it: python docs/screenshots.py docs/_build/html folder

Headless Chromium opens each page at the width of a desk and of a phone. A page fails if it is wider than the window, if a
picture is missing, or if a formula is not drawn; the search must find a page. Each page and width gives one screenshot.
"""

import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from html import unescape
from pathlib import Path

WIDTHS = (1280, 390)
FRAME = """<!doctype html><title>measure</title><body style="margin:0;overflow:hidden">
<iframe id="page" src="{page}" style="width:{width}px;height:30000px;border:0"></iframe>
<script>
page.onload = () => setTimeout(() => {{
  const inside = page.contentDocument, root = inside.documentElement;
  const broken = [...inside.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src);
  const wide = [...inside.querySelectorAll("article *")].filter(one => {{
    const right = one.getBoundingClientRect().right;
    for (let up = one; up && up !== root; up = up.parentElement)
      if (/auto|scroll|hidden/.test(page.contentWindow.getComputedStyle(up).overflowX)) return false;
    return right > root.clientWidth + 1;
  }}).map(one => one.tagName + ": " + one.textContent.slice(0, 60));
  const results = [...inside.querySelectorAll("#search-results li a")].map(one => one.textContent);
  document.body.dataset.measured = JSON.stringify({{
    width: root.scrollWidth, window: root.clientWidth, broken, wide, results, text: root.textContent.length,
    formulas: [...inside.querySelectorAll("math")].filter(one => !one.getBoundingClientRect().width).length
  }});
}}, {wait});
</script>"""


def chromium(browser: str, *arguments: str) -> str:
    """Run Chromium with a profile of its own, and return what it prints."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and pages that measure one of it in a frame."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.startswith("/measure?"):
            super().do_GET()
            return
        _, width, wait, page = self.path.split("?", 3)
        body = FRAME.format(page=page, width=width, wait=wait).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)


def measure(browser: str, address: str, page: str, width: int, *also: str, wait: int = 300) -> dict[str, object]:
    """Open a page in a frame of that width, and read what it measures. Chromium's own window is not narrower than 500 px."""
    size, budget = f"--window-size={max(width, 500)},900", f"--virtual-time-budget={wait + 5_000}"
    printed = chromium(browser, size, budget, *also, "--dump-dom", f"{address}/measure?{width}?{wait}?/{page}")
    found = re.search(r'data-measured="([^"]*)"', printed)
    if found is None:
        raise SystemExit(f"{page} was not measured at {width} px.")
    measured: dict[str, object] = json.loads(unescape(found[1]))
    return measured


def look(site: Path, folder: Path, only: list[str]) -> list[str]:
    """
    Open all pages.

    :param site: Where index.html is
    :param folder: Where to write the screenshots
    :param only: Names of pages; empty: all
    :return: What is wrong, in words
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("No Chromium was found: apt-get install chromium")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    found = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    pages = only or [page for page in found if page != "index.html" and not page.startswith("_")]
    faults = []
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        for width in WIDTHS:
            target = folder / f"{page.removesuffix('.html').replace('/', '-')}-{width}.png"
            seen = measure(browser, address, page, width, f"--screenshot={target}")
            if seen["width"] != seen["window"] or seen["wide"]:
                faults.append(f"{page} at {width} px is {seen['width']} wide, by {seen['wide']}")
            if seen["broken"] or seen["formulas"]:
                faults.append(f"{page} at {width} px lacks {seen['broken']} and {seen['formulas']} formulas")
    results = measure(browser, address, "search.html?q=gradient_variance_ratio", 1280, wait=2_000)["results"]
    if not results:
        faults.append("The search for gradient_variance_ratio found nothing.")
    server.shutdown()
    print(f"{len(pages)} pages; the search finds: {results}")
    return faults


if __name__ == "__main__":
    wrong = look(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    print(*wrong, sep="\n")
    sys.exit(bool(wrong))
