"""Build the site of `make docs`: the documents, the notebooks as the demo executed them, and an API reference.

A copy of the repository's documents is laid as they lie there, so that their links hold, and Sphinx makes pages of it.
The site appears whole, or an earlier one stays.
"""
import argparse
import base64
import hashlib
import re
import shutil
import sys
from pathlib import Path

import api_pages
import nbformat

from egokit.config.resolve import outputs_folder
from egokit.notebook.headless import cell_sources
from egokit.notebook.safe_html import escape
from egokit.runs.files import temporary_folder
from egokit.runs.run_folder import NOTEBOOK

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
RUN = "demo"  # the run of each notebook that `make demo` leaves
INVENTORY = "objects.inv"  # Sphinx writes it into every site
KINDS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "video/mp4": "mp4"}
EMBEDDED = re.compile(rf'src="data:({"|".join(KINDS)});base64,([A-Za-z0-9+/=\s]+)"')
UNDESCRIBED = "a figure without a description"
INCLUDED = re.compile(r"\]\(([^)\s#]+)[^)]*\)")  # the targets of Markdown's links and pictures


def main() -> int:
    """Build the site and return Sphinx's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=outputs_folder() / "site", help="the folder of the site")
    target = parser.parse_args().to.resolve()
    expect_site(target)
    from sphinx.cmd.build import build_main
    with temporary_folder() as folder:
        source, built = Path(folder) / "source", Path(folder) / "html"
        missing, damaged = assemble(source, outputs_folder())
        status = build_main(["-b", "html", "-c", str(HERE), "-d", f"{folder}/doctrees", "-W", "--keep-going", "-q",
                             "-j", "2", "-D", f"html_extra_path={source}/extra", str(source), str(built)])
        if status:
            return status
        replace(target, built)
    if missing:
        print(f"without outputs, as the demo has not executed them: {', '.join(missing)}; make demo, then make docs")
    for reason in damaged:
        print(f"without outputs: {reason}")
    print(f"the site: {target / 'index.html'}")
    return 0


def expect_site(target: Path) -> None:
    """End the program if a folder holds something else than a site, as all in it would be deleted."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / INVENTORY).is_file()):
        sys.exit(f"{target} holds something else than a site (no {INVENTORY}): name another folder, --to FOLDER")


def replace(target: Path, built: Path) -> None:
    """Put a site in the place of an earlier one, which stays until the new one lies whole beside it."""
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(built, beside)
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)


def assemble(source: Path, outputs: Path) -> tuple[list[str], list[str]]:
    """Lay the sources of all pages under `source`.

    Returns:
        The notebooks that the demo has not executed; and for each whose executed copy is damaged, its file, why, and
        how to make it again.
    """
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        copy_document(path, source)
    executed = {path.stem: outputs / path.stem / RUN / NOTEBOOK for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    (source / "extra/media").mkdir(parents=True)
    (source / "notebooks").mkdir()
    damaged = [reason for name, ran in executed.items()
               if (reason := write_notebook(ROOT / f"notebooks/{name}.ipynb", ran, source))]
    pages = api_pages.write_pages(source / "api")
    readme = source / "README.md"
    order = re.findall(r"\]\((docs/\w+|[A-Z]+)\.md\)", readme.read_text())
    documents = [str(path.relative_to(source).with_suffix("")) for path in sorted(source.glob("**/*.md"))]
    order = [name for name in dict.fromkeys([*order, *documents]) if name in documents and name != "README"]
    text = readme.read_text() + "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in (("Notebooks", [f"notebooks/{name}" for name in executed]), ("Documents", order),
                               ("API reference", pages)))
    (source / "index.md").write_text(text)
    readme.unlink()
    return [name for name, ran in executed.items() if not ran.is_file()], damaged


def copy_document(path: Path, source: Path) -> None:
    """Copy a document and the files that it shows or links to, other documents excepted."""
    text = path.read_text()
    for target in INCLUDED.findall(text):
        file = (path.parent / target).resolve()
        if "://" not in target and file.is_file() and file.suffix not in (".md", ".ipynb"):
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    copy = source / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(re.sub(r"\]\((\.\./)?README\.md", r"](\1index.md", text))  # README is the front page


def write_notebook(path: Path, executed: Path, source: Path) -> str:
    """Write the page of a notebook: as it was executed, else as it is, which the page then says.

    Returns:
        What is wrong with the executed notebook, which then has no outputs here, and the fix; "" if nothing is.
    """
    note, reason = "", ""
    if not executed.is_file():
        book = read_book(path)
        note = ("This notebook has no outputs here: `make demo` had not executed it when this site was built. "
                "`make demo`, then `make docs`, fills it.")
    else:
        try:
            book = with_media(executed, source / "extra/media")
        except ValueError as error:
            book, reason = read_book(path), f"{error}; delete it: make demo, then make docs, makes it again"
            note = ("This notebook has no outputs here: the file of its execution was damaged when this site was "
                    "built, as `make docs` then said. Delete it: `make demo`, then `make docs`, makes it again.")
        else:
            if cell_sources(path) != cell_sources(executed):
                note = ("The notebook has changed since the demo executed it. This page shows what was executed; "
                        "`make demo`, then `make docs`, brings it up to date.")
    if note:
        book.cells.insert(1, nbformat.v4.new_markdown_cell(f"```{{note}}\n{note}\n```"))
    nbformat.write(book, source / "notebooks" / path.name)
    return reason


def read_book(path: Path) -> nbformat.NotebookNode:
    """Return a notebook.

    Raises:
        ValueError: It is damaged; the message names it.
    """
    try:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
    except OSError:
        raise
    except Exception as error:  # of JSON, of nbformat's conversions, or of the schema: there is no common class
        reason = (str(error) or type(error).__name__).splitlines()[0][:150]
        raise ValueError(f"{path} is no whole notebook ({reason})") from None
    return book


def with_media(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook whose embedded pictures and videos are moved into a folder.

    Raises:
        ValueError: It, or one of them, is damaged; the message names the notebook.
    """
    book = read_book(path)
    for output in [output for cell in book.cells for output in cell.get("outputs", [])]:
        data = output.get("data", {})
        if png := "text/html" not in data and data.pop("image/png", ""):
            alt = output.metadata.get("image/png", {}).get("alt", UNDESCRIBED)
            data["text/html"] = f'<img alt="{escape(alt)}" src="data:image/png;base64,{png}">'
        if html := data.get("text/html"):
            try:
                data["text/html"] = EMBEDDED.sub(lambda match: media(match, folder), "".join(html))
            except ValueError as error:  # of base64
                raise ValueError(f"{path} is no whole notebook (a picture or video in it: {error})") from None
    return book


def media(match: re.Match, folder: Path) -> str:
    """Move an embedded picture or video into a file beside the pages, which then open at once."""
    content = base64.b64decode(match[2])
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.{KINDS[match[1]]}"
    (folder / name).write_bytes(content)
    return f'src="../media/{name}"'


if __name__ == "__main__":
    sys.exit(main())
