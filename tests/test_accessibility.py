"""axe-core finds what keeps people out of a page, or the tests that rely on it would prove nothing."""
import pytest
from accessibility import serious

from egokit.notebook import safe_html

pytestmark = pytest.mark.slow

PNG = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
       "RU5ErkJggg==")


def test_planted_barriers_are_found_in_a_page_that_allows_no_other_script(chromium, tmp_path):
    page = chromium.new_page()
    path = tmp_path / "page.html"
    path.write_text(safe_html.page("a title", f'<h1>text</h1><img alt="a clip" src="{PNG}">'))
    page.goto(path.as_uri())
    assert serious(page) == []
    path.write_text(safe_html.page("a title", f'<h1>text</h1><img src="{PNG}"><select><option>1</option></select>'
                                              '<p style="color:#aaa;background:#fff">pale</p>'))
    page.goto(path.as_uri())
    assert {finding.split()[0] for finding in serious(page)} == {"image-alt", "select-name", "color-contrast"}
    assert {finding.split()[0] for finding in serious(page, within="p")} == {"color-contrast"}
    page.close()
