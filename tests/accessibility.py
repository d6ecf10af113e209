"""axe-core on a page in Chromium: what it finds serious or critical. tests/browser.sh installs it."""
import functools
import os
import re
from pathlib import Path

import pytest

FRAGMENT = ("document-title", "html-has-lang")  # a notebook's output has no page of its own to set them
FINDINGS = """async ([within, left]) => {
    const rules = Object.fromEntries(left.map(name => [name, {enabled: false}]));
    const result = await axe.run(within || document, {resultTypes: ['violations'], rules});
    return result.violations.filter(rule => ['serious', 'critical'].includes(rule.impact)).map(rule =>
        `${rule.id} (${rule.impact}): ${rule.nodes.length} such as ${rule.nodes[0].html.slice(0, 200)} ` +
        rule.nodes[0].failureSummary.replace(/\\s+/g, ' ').slice(0, 300)) }"""


@functools.cache
def axe() -> str:
    """Return axe-core's script; without it a test is skipped, or fails where it is required."""
    version = re.search(r"^AXE=([\d.]+)", Path(__file__).with_name("browser.sh").read_text(), re.MULTILINE)[1]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / f"egokit-tests/axe-core-{version}/axe.min.js"
    if not path.is_file():
        missing = f"no {path}: tests/browser.sh"
        pytest.fail(missing) if os.environ.get("EGOKIT_BROWSER") == "required" else pytest.skip(missing)
    return path.read_text()


def serious(page, within: str = "", left_out: tuple[str, ...] = ()) -> list[str]:
    """Return what axe-core finds serious or critical in a page.

    Args:
        page: Playwright's page; its own rules against other scripts don't concern axe.
        within: A CSS selector of the part to look at; "" is the whole page.
        left_out: Rules that do not apply to this page.
    """
    page.evaluate(axe())
    return page.evaluate(FINDINGS, [within, list(left_out)])
