"""Text out of files of others: names that become paths, and words that reach a terminal."""
import hashlib
import re
import sys
import unicodedata

LONGEST = 160  # bytes of a name; with a suffix and what a temporary file adds, it stays below a file system's 255
NAME = (f"expected text that can name a file: no folders, no control characters, at most {LONGEST} bytes, no '.' or "
        "space at its beginning")
STEM = 60      # characters of a text in a file's name
JOINERS = "\u200c\u200d"  # stand in Persian words and in emoji
REORDERING = "\u202a-\u202e\u2066-\u2069"  # let letters be shown in another order, the suffix of a name included
UNNAMED = re.compile(rf"[/\\{REORDERING}]|^\.")


def is_hidden(character: str) -> bool:
    """Return whether a character steers a terminal, or changes how others read, without being seen itself."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS


def check_name(name: str) -> str:
    """Return a name out of a table or list that becomes the name of a file or folder.

    It stays in the folder that it is put in, and what is named so is seen by its user.

    Raises:
        ValueError: it is no such name; the message says what was expected.
    """
    if (not name or name != name.strip() or UNNAMED.search(name) or len(name.encode(errors="surrogatepass")) > LONGEST
            or any(is_hidden(character) and unicodedata.category(character) != "Cf" for character in name)):
        raise ValueError(NAME)
    return name


def check_path(path: str) -> str:
    """Return the name of a video out of a table or list, which may have folders: each part is a name.

    Raises:
        ValueError: as `check_name`.
    """
    for part in path.split("/"):
        check_name(part)
    return path


def check_path_within(path: str) -> str:
    """Return a path out of a list of files that may lie in sub-folders.

    Raises:
        ValueError: it leads out of the folder, or to something hidden; the message says what was expected.
    """
    if "\0" in path or any(not part or part[0] == "." for part in path.split("/")):
        raise ValueError("expected a path in the folder, without '..' or hidden parts")
    return path


def file_stem(text: str) -> str:
    """Return a text as a part of a file's name: its words in lower case, with hyphens between them.

    A "#" at its beginning, and a "?" or "." at its end, are left out. Whatever else is cut or replaced gives the name
    six digits of a hash, so that two texts don't get one name.
    """
    stem = re.sub(r"\W+", "-", text).strip("-").lower()[:STEM].encode()[:2 * STEM].decode(errors="ignore")
    if stem and "-" not in text and stem == re.sub(r"^#|[?.]$", "", text).replace(" ", "-").lower():
        return stem
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return "-".join(filter(None, (stem.rstrip("-"), digest)))


def printable(text: str, kept: str = "") -> str:
    """Return text as a terminal may be given it: control characters and other hidden ones become escapes.

    What is not Unicode, such as a file name of an old disk, becomes replacement characters.

    Args:
        kept: characters that stay, such as line ends.
    """
    hidden = {character for character in set(text).difference(kept)
              if not " " <= character <= "~" and is_hidden(character)}
    return text.translate({ord(character): "\ufffd" if unicodedata.category(character) == "Cs"
                           else character.encode("unicode_escape").decode() for character in hidden})


def shortened(value, limit: int = 200) -> str:
    """Return a value as text of at most `limit` characters and a mark for what is cut, for a message."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


class PrintableStream:
    """A text stream in front of another, which writes everything as `printable` does, but for line ends and tabs.

    A progress bar may return to the start of its line.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        bar = text.startswith("\r")
        self._stream.write("\r" * bar + printable(text[bar:], "\n\t"))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)


def protect_terminal() -> None:
    """Let texts of files, which may be others', steer no terminal: for good, as a traceback is printed at the end."""
    if not isinstance(sys.stdout, PrintableStream):
        sys.stdout, sys.stderr = PrintableStream(sys.stdout), PrintableStream(sys.stderr)
