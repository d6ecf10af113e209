"""Error messages explain themselves: they name a file, a key or a value, and a fix."""
import ast
import re

from conftest import ROOT

KEY = r"\b(site|model|data|optim|train|evaluate|task|launch)\.\w+|--\w+"  # a key of a recipe, or an option
FIX = (r"expected|such as|did you mean|egokit \w+|\b(choose|copy|correct|fetch|give|install|keep|leave|make|name|put|"
       r"remove|rename|restore|set|start|submit|train|use|wait|write)\b")
# messages, after their place, that are but a part of what is shown
PARTS = {
    r": (it|a tensor) ": "why a checkpoint is refused; what reads it puts the file before",
    r"annotation_tables.py:\d+: \0, line \0: \0: \0$": "the reason, which the line before chooses, is the last value",
    r"prep/video.py:\d+: \0: \0$": "the same: which outputs are wrong, and why",
    r"searcher.py:\d+: .* has no index of any video": "the same: what makes the index, or why nothing can be read",
    r"is not valid YAML": "YAML's own words, with the line, come after it",
    r"only SLURM's jobs have a script": "the fix is the value that the key should have",
    r"a number, not true or false": "what a key expected; egokit/config/build.py puts the key before",
    r"another user's, or a link": "stands in brackets behind the folder",
    r"squeue": "the reason of a job's state 'unknown', behind the job",
    r"toy/frame_number.py": "about the toy's own frames, which no user's file can damage",
}


def messages() -> list[tuple[str, str, str]]:
    """(place, exception, message) of every exception that egokit makes; \\0 stands for what a message puts in."""
    rows = []
    for path in sorted((ROOT / "egokit").rglob("*.py")):
        tree = ast.parse(path.read_text())
        caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            exception = ast.unparse(call.func).rpartition(".")[2]
            if exception.endswith(("Error", "Failed", "NotSubmitted", "RunTakenOver")):
                text = re.sub(r"\s+", " ", message_text(call.args[0], caught))
                if text.strip("\0 "):  # else the message was made elsewhere
                    rows.append((f"{path.relative_to(ROOT)}:{call.lineno}", exception, text))
    return rows


def message_text(node, caught: set[str] = frozenset()) -> str:
    """A message with \\0 in place of a value; another error's words, a hint and a constant count as text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(message_text(value, caught) for value in node.values)
    if isinstance(node, ast.BinOp):
        return message_text(node.left, caught) + message_text(node.right, caught)
    if isinstance(node, ast.FormattedValue):
        inner = ast.unparse(node.value)
        if inner in caught:
            return f"\0 ({inner} of a library)"
        if re.match(r"[A-Z]+$", inner):
            return f" constant {inner} "
        return "\0did you mean" if re.match(r"nearest\(|did_you_mean\(", inner) else message_text(node.value, caught)
    if isinstance(node, ast.IfExp):
        return f"{message_text(node.body, caught)}\0{message_text(node.orelse, caught)}"
    return "\0"


def unhelpful(exception: str, text: str) -> str:
    """Say why a message doesn't help whoever reads it, or "" if it does."""
    if not ("\0" in text or re.search(KEY, text) or re.search(FIX, text, re.IGNORECASE)):
        return "names no file, key or value, and says no fix"
    if len(re.sub(r"\W", "", text)) < 10:
        return "says hardly anything"
    if exception in ("ConfigError", "SetupError") and not re.search(FIX, text, re.IGNORECASE):
        return "is about a mistake of the user, and says neither what was expected nor a fix"
    return ""


def test_error_messages_name_what_is_wrong_and_a_fix():
    rows = messages()
    assert len(rows) > 150
    wrong = [f"{place}: {text!r} {why}" for place, exception, text in rows if (why := unhelpful(exception, text))
             and not any(re.search(part, f"{place}: {text}") for part in PARTS)]
    assert not wrong, "\n".join(wrong)


def test_that_rule_can_fail():
    def why(code: str) -> str:
        call = ast.parse(code).body[0].value
        return unhelpful(call.func.id, message_text(call.args[0]))
    assert "names no file" in why('ValueError("bad value")')
    assert "hardly anything" in why('VideoError(f"{path}: {reason}")')
    assert "nor a fix" in why('ConfigError(f"{key} of this recipe is {value}")')
    assert not why('ConfigError(f"{key}: expected one of {choices}, got {value}")')
