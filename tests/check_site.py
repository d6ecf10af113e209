"""Check the site that `make docs` built, for .ci/run: links, requests, formulas, search, accessibility, page by page.

It needs Chromium and axe-core (tests/browser.sh), and no network: whatever a page asks for must come from the site.
"""
import functools
import http.server
import shutil
import sys
import threading
import time
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

from accessibility import serious
from playwright.sync_api import Error, sync_playwright

import egokit
from egokit.config.resolve import outputs_folder

ROOT = Path(__file__).parents[1]
SITE = Path(sys.argv[1]) if len(sys.argv) > 1 else outputs_folder() / "site"
SOURCES = "_modules/"  # the package's files, all made alike: the first few are opened, the links of all are followed
OPENED = 5
SIZE = {"width": 1300, "height": 900}  # of the window, pixels


class Page(HTMLParser):
    """What a page refers to, and the places in it that others refer to."""

    def __init__(self, path: Path):
        super().__init__()
        self.places, self.targets, self.loaded, self.films = set(), [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.films += tag == "video"
        self.places |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])
        elif address := values.get("src") or (tag == "link" and values.get("href")):
            self.loaded.append(address)


def broken_links(pages: dict[str, Page]) -> list[str]:
    """Return every link to a page, file or place that is not there, and what a page would load from elsewhere."""
    wrong = []
    for name, page in pages.items():
        for address in [*page.targets, *page.loaded]:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme == "data" or (parts.scheme and address in page.targets):
                continue
            if parts.scheme or parts.netloc:
                wrong.append(f"{name} loads {address[:100]}")
                continue
            target = (SITE / name).parent.joinpath(urllib.parse.unquote(parts.path)).resolve() if parts.path else \
                SITE / name
            place, other = urllib.parse.unquote(parts.fragment), str(target.relative_to(SITE.resolve())) \
                if target.is_relative_to(SITE.resolve()) else ""
            if not target.is_file() or (place and other in pages and place not in pages[other].places):
                wrong.append(f"{name} has a broken link: {address[:100]}")
    return wrong


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A server that writes no log."""

    def log_message(self, *arguments) -> None:
        """Write nothing."""


class Visitor:
    """Chromium, which opens pages of the site and takes down what goes wrong in each."""

    def __init__(self, browser, address: str):
        self.address, self.wrong, self.at = address, [], ""
        self.page = browser.new_context(viewport=SIZE).new_page()
        self.page.on("console", lambda message: self.note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.note(str(error)))
        # what is still on its way when a reader follows a link is aborted; what is missing has another answer
        self.page.on("requestfailed", lambda request: None if request.failure == "net::ERR_ABORTED"
                     else self.note(f"{request.url[:100]} failed: {request.failure}"))
        self.page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:", "file:"))
                     else self.note(f"asks for {request.url[:100]}"))
        self.page.on("response", lambda answer: self.note(f"{answer.url}: {answer.status}") if answer.status >= 400
                     else None)

    def note(self, text: str) -> None:
        self.wrong.append(f"{self.at}: {text}")

    def open(self, name: str):
        self.at = name
        self.page.goto(self.address + name)
        return self.page

    def look(self, name: str) -> None:
        """Open a page; check its title, its pictures, its formulas, and that it keeps nobody out."""
        page = self.open(name)
        if page.locator("h1").count() == 0 and name != "search.html":  # where a script writes one above its results
            self.note("no title")
        page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager' })")
        page.wait_for_function("[...document.images].every(image => image.complete)", timeout=10_000)
        empty = page.evaluate("[...document.images].filter(image => image.src && !image.naturalWidth).length")
        flat = page.evaluate("[...document.querySelectorAll('math')].filter("
                             "formula => formula.getBoundingClientRect().width < 4).length")
        dollars = page.evaluate("[...document.querySelectorAll('math')].filter(formula => /\\$\\s*$/.test("
                                "formula.previousSibling?.textContent) || /^\\s*\\$/.test("
                                "formula.nextSibling?.textContent)).length")
        for count, what in ((empty, "pictures not shown"), (flat, "formulas without a size"),
                            (dollars, "formulas with a $ beside them")):
            if count:
                self.note(f"{count} {what}")
        self.wrong += [f"{name}: {finding}" for finding in serious(page)]

    def narrow(self, name: str) -> None:
        """Open a page on a phone: nothing hangs over, and the keyboard opens the pages' list, else passes it by."""
        page = self.open(name)
        page.set_viewport_size({"width": 360, "height": 740})
        page.reload()
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            self.note("wider than a phone")
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") != "__navigation":
            self.note("the first Tab does not reach the button of the list of pages")
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("Boolean(document.activeElement.closest('.sidebar-drawer, .toc-drawer'))"):
                self.note("Tab reaches a link in a drawer that is closed")
                break
        page.locator("#__navigation").focus()
        page.keyboard.press("Space")
        try:
            page.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().left === 0",
                                   timeout=5_000)
        except Error as error:
            self.note(f"Space does not open the list of pages: {error.message[:200]}")
        page.set_viewport_size(SIZE)

    def search(self, text: str, expected: str) -> None:
        """Search as a reader would, and follow the result that is expected."""
        page = self.open(f"search.html?q={urllib.parse.quote(text)}")
        result = page.locator(f"#search-results li a[href*='{expected}']").first
        try:
            result.click(timeout=20_000)
            page.wait_for_url(f"**/{expected}**", timeout=20_000)
        except Error as error:
            self.note(f"a search for {text!r} does not lead to {expected}: {error.message[:200]}")

    def play(self, name: str) -> None:
        """Play the first video of a page."""
        page = self.open(name)
        handle = page.locator("video").first.element_handle()
        try:
            handle.evaluate("video => { video.muted = true; return video.play() }")
            page.wait_for_function("video => video.videoWidth > 0 && (video.currentTime > 0.2 || video.ended)",
                                   arg=handle, timeout=20_000)
        except Error as error:
            self.note(f"a video that does not play: {error.message[:200]}")


def main() -> int:
    """Check everything; print what is wrong and return the exit status."""
    began = time.perf_counter()
    pages = {str(path.relative_to(SITE)): Page(path) for path in sorted(SITE.rglob("*.html"))}
    wrong = broken_links(pages)
    places = set().union(*(page.places for page in pages.values()))
    wrong += [f"egokit.{name} is not in the API reference" for name in egokit._PUBLIC
              if not {f"egokit.{name}", f"{getattr(egokit, name).__module__}.{name}"} & places]
    documents = [name for name in pages if not name.startswith(SOURCES)]
    for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")):
        if f"{path.relative_to(ROOT).with_suffix('')}.html" not in pages:
            wrong.append(f"no page of {path.name}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        visitor = Visitor(browser, f"http://127.0.0.1:{server.server_port}/")
        for name in [*documents, *[name for name in pages if name.startswith(SOURCES)][:OPENED]]:
            visitor.look(name)
        for name in ("docs/search.html", "notebooks/11_compare_runs.html"):
            visitor.narrow(name)
        visitor.search("preemption", "docs/cluster")
        visitor.search("max_margin", "api/")
        filmed = [name for name in documents if pages[name].films]
        for name in filmed[:2]:
            visitor.play(name)
        visitor.address = f"{SITE.resolve().as_uri()}/"  # as somebody opens it without a server
        visitor.search("preemption", "docs/cluster")
        browser.close()
    server.shutdown()
    wrong += visitor.wrong
    if [*outputs_folder().glob("07*/demo/notebook.ipynb")] and not filmed:
        wrong.append("no page plays a video, not even notebook 07's")
    print("\n".join(wrong) or f"the site holds: {len(pages)} pages, {len(documents)} of them looked at, "
                              f"in {time.perf_counter() - began:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
