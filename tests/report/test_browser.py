"""The page in a real browser, as wide as a phone and as a screen: `make test-browser`."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from e2rank_rag.report.page import as_html, write_report
from tests.report.parts import case, dataset, report, row

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
LONG = "averylongwordwithoutanyspace" * 20

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on PATH: {', '.join(BROWSERS)}"),
]

PROBE = """<script>
for (const each of document.querySelectorAll("details")) each.open = true;
const width = document.documentElement.scrollWidth;
const wide = [...document.querySelectorAll("body *")].filter(
  (each) => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest("thead")
);
parent.postMessage(JSON.stringify({
  inner: innerWidth, scroll: width, wide: wide.map((each) => each.outerHTML.slice(0, 200)),
}), "*");
</script>"""

# A window of Chromium is at least 500 wide; a frame may be as narrow as a phone.
FRAME = """<!doctype html><title>none</title>
<script>onmessage = (event) => { document.title = event.data; };</script>
<iframe src="copy.html" width="WIDTH" height="900" style="border: 0"></iframe>"""


def browse(page, folder, *options, width):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def made():
    """A page whose names, ids and texts are as long as they can be."""
    rows = (row(1, LONG, text=LONG, grade=1), row(2, "d2", other=None, text="<script>x()</script>"))
    one = case(dataset=LONG, query=LONG, query_id=LONG, rows_before=rows, rows_after=rows)
    several = (dataset("one"), dataset(LONG, won=(one,), lost=(one,)), *map(dataset, "abcdef"))
    return report(*several, model=LONG)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(made, tmp_path, width):
    # The page's policy allows no script, so the probe is in a copy without it.
    page = re.sub(r"<meta http-equiv=[^>]*>", "", as_html(made))
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    done = browse(frame, tmp_path, "--dump-dom", "--virtual-time-budget=5000", width=2000)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    found = json.loads(html.unescape(title[1]))
    assert found == {"inner": width, "scroll": width, "wide": []}


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_makes_no_request_and_no_error(made, tmp_path, width):
    page, log = tmp_path / "report.html", tmp_path / "net.json"
    write_report(made, page)
    options = ["--screenshot=" + str(tmp_path / "shot.png"), f"--log-net-log={log}"]
    done = browse(page, tmp_path, *options, width=width)
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "shot.png").stat().st_size > 10_000
    assert requested(log) == set()


def test_a_request_of_a_page_would_be_seen(tmp_path):
    page, log = tmp_path / "asking.html", tmp_path / "net.json"
    page.write_text("<img src='http://picture.test/a.png'>", encoding="utf-8")
    browse(page, tmp_path, "--dump-dom", f"--log-net-log={log}", width=390)
    assert requested(log) == {"http://picture.test/a.png"}


def requested(log):
    """The addresses that the browser asked for, but for what it asks for itself."""
    urls = set(re.findall(r'"url":"(\w+://[^"]*)"', log.read_text(encoding="utf-8")))
    own = r"(file|chrome|chrome-\w+)://|https?://([\w-]+\.)*(google|googleapis|gvt1|gstatic)\.com/"
    return {url for url in urls if not re.match(own, url)}
