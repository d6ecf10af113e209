"""Seeded mutations of files: of their bytes, and of what their formats consist of.

`mutate` depends on nothing but bytes and the dice, so that a finding is made again from its seed.
"""
import io
import json
import pickletools
import random
import re
import struct
import zipfile

from egokit.config.yaml_file import parse_yaml

NUMBERS = [0, -1, 1, 2 ** 31, 2 ** 32 + 1, 2 ** 63, -2 ** 63, 1e309, -1e309, float("nan"), 1e-320, 10 ** 30, 7.5,
           True]
TEXTS = ["", "x", "x" * 100_000, "../../x", "/etc/passwd", "\x1b[31mred", "\ud800", "a\0b", "<script>", "$x$ $",
         "é\u2028", "1e309", "nan", "-1", "concat:x", "{}", "a\nb"]
GLOBALS = ["os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen",
           "numpy.f2py.__main__ main", "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct",
           "numpy.core.multiarray scalar", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "codecs encode",
           "collections OrderedDict", "torch.hub load", "pathlib PosixPath", "torch.storage _load_from_bytes",
           "egokit.config.schema Config", "builtins bytearray", "numpy frombuffer", "copyreg _reconstructor",
           "torch.jit load", "numpy.lib.npyio load", "pickle loads", "importlib import_module",
           "no.such thing", "antigravity geohash", "this s", "turtle Turtle"]
OPCODES = [b"b", b"R", b"\x81", b"0", b"2", b"(", b"t", b"]aaa", b"}s", b"q\xff", b"h\xff", b"Q", b"P1\n", b"\x97",
           b"\x98", b"\x82\x01", b"K\x05", b"N", b"I" + b"9" * 5000 + b"\n", b"F1e309\n", b"}}b", b"]2a", b"}22s", b"."]


def mutate(data: bytes, name: str, dice: random.Random, others: list[bytes]) -> bytes:
    """Return a mutation of a file's bytes; the same for the same state of the dice.

    Args:
        data: the file.
        name: its name, whose suffix tells the format.
        dice: what decides.
        others: files of the same kind, of which parts are taken.
    """
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        aware = FORMATS.get(name.rpartition(".")[2])
        if aware and dice.random() < 0.6:
            try:
                data = aware(data, dice, others)
                continue
            except Exception:  # an earlier mutation has left nothing of the format
                pass
        data = dice.choice(BYTES)(data, dice, others)
    return data


# bytes

def _place(data, dice):
    """A place, as often near the beginning, where headers are, as anywhere."""
    return dice.randrange(min(len(data), 200) + 1) if dice.random() < 0.4 else dice.randrange(len(data) + 1)


def flip(data, dice, others):
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 3, 20))):
        if out:
            at = min(_place(out, dice), len(out) - 1)
            out[at] = dice.choice((out[at] ^ (1 << dice.randrange(8)), dice.randrange(256), 0, 255))
    return bytes(out)


def truncate(data, dice, others):
    return data[:_place(data, dice)]


def blocks(data, dice, others):
    """Delete, double, move, zero or insert a block."""
    at, to = sorted((_place(data, dice), _place(data, dice)))
    block = data[at:to]
    return dice.choice((data[:at] + data[to:], data[:to] + block * dice.choice((1, 2, 9)) + data[to:],
                        data[:at] + bytes(len(block)) + data[to:], data[:at] + dice.randbytes(9) + data[at:],
                        data[to:] + data[:to]))[:len(data) * 4 + 100]


def splice(data, dice, others):
    other = dice.choice(others or [data])
    return data[:_place(data, dice)] + other[_place(other, dice):]


def number(data, dice, others):
    """Replace a decimal number in the text, or four or eight bytes."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20_000]))
    if found and dice.random() < 0.7:
        match = dice.choice(found)
        return data[:match.start()] + str(dice.choice(NUMBERS)).encode() + data[match.end():]
    at, width = _place(data, dice), dice.choice((4, 8))
    value = dice.choice((0, 1, -1, 2 ** 31 - 1, len(data), 2 ** 20)).to_bytes(width, "little", signed=True)
    return data[:at] + value + data[at + width:]


BYTES = [flip, flip, truncate, blocks, splice, number]


# JSON, YAML and tables

def change_value(value, dice):
    """Return a parsed document with one change in it."""
    owner, places = [value], []
    stack = [(owner, 0, value)]
    while stack:
        parent, key, item = stack.pop()
        places.append((parent, key))
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        stack += [(item, inner, content) for inner, content in pairs]
    parent, key = dice.choice(places)
    old = parent[key]
    action = dice.randrange(6)
    if action == 0 and isinstance(parent, dict):
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[dice.choice(TEXTS)] = parent.pop(key)
    elif action == 2:
        other_parent, other_key = dice.choice(places)
        parent[key] = json.loads(json.dumps(other_parent[other_key]))
    elif action == 3:
        parent[key] = nested(old, dice.choice((3, 70, 300)), dice)
    else:
        parent[key] = dice.choice([None, [], {}, [old], {"a": old}, str(old), dice.choice(NUMBERS), dice.choice(TEXTS),
                                   dice.choice(NUMBERS), dice.choice(TEXTS)])
    return owner[0]


def nested(value, depth, dice):
    for _ in range(depth):
        value = [value] if dice.random() < 0.5 else {"a": value}
    return value


def in_json(data, dice, others):
    if dice.random() < 0.05:
        return dice.choice((b"[", b'{"a":')) * 100_000
    text = json.dumps(change_value(json.loads(data), dice))
    return text.encode(errors="surrogatepass")


def in_lines(data, dice, others):
    lines = data.split(b"\n")
    at = dice.randrange(len(lines))
    if lines[at].startswith(b"{") and dice.random() < 0.7:
        lines[at] = in_json(lines[at], dice, others)
    else:
        lines[at] = dice.choice((b"", b"5", b"[1]", b'{"a": 1}', b"\xff", lines[at][:9], dice.choice(lines)))
    return b"\n".join(lines)


def in_yaml(data, dice, others):
    value = parse_yaml(data.decode())  # PyYAML's own loader would take minutes over some mutations
    if not isinstance(value, dict) or dice.random() < 0.2:
        line = dice.choice((b"a: &a [*a]", b"<<: 1", b"? [1]\n: 2", b"seed: 1\nseed: 2",
                            b"a: !!bool x", b"a: 2020-99-99", b"a: !!python/name:os.system", b"\t",
                            b"seed: 1" + b":59" * 99_999, b"- " * 3000))
        return data + b"\n" + line
    return json.dumps(change_value(value, dice)).encode(errors="surrogatepass")


def in_table(data, dice, others):
    lines = data.split(b"\n")
    delimiter = b"\t" if b"\t" in lines[0] else b","
    at = dice.choice((0, dice.randrange(len(lines))))
    cells = lines[at].split(delimiter)
    cell = dice.randrange(len(cells))
    if dice.random() < 0.2:
        cells.insert(cell, cells.pop())
    else:
        cells[cell] = dice.choice([b'"', b"", b"\xff", b"[1", b"[" * 50_000, b"['a']", b"(1,)", *(
            str(item).encode(errors="surrogatepass") for item in (dice.choice(NUMBERS), dice.choice(TEXTS)))])
    lines[at] = delimiter.join(cells)
    return b"\n".join(lines)


# pickles

def in_pickle(data, dice, others):
    """Insert, replace or repeat opcodes."""
    places = [place for _, _, place in pickletools.genops(data)]
    at = dice.choice(places)
    after = places[min(places.index(at) + dice.choice((1, 1, 2, 5)), len(places) - 1)]
    name = dice.choice(GLOBALS)
    named = b"c" + name.replace(" ", "\n").encode() + b"\n"
    stacked = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split()) + b"\x93"
    text = b"\x8c\x0ctouch PWNED."[:14]
    size = struct.pack("<I", dice.choice((0, 2 ** 31 - 1, 2 ** 32 - 1, 2 ** 24)))
    piece = dice.choice([
        named, stacked, named + text + b"\x85R", stacked + text + b"\x85R0", named + b")\x81", data[at:after], *OPCODES,
        *(code + size for code in (b"r", b"j", b"X", b"B", b"\x8b", b"\x95")),
        *(code + size + bytes(4) for code in (b"\x8e", b"\x96")), b"\x85" * dice.choice((5, 50_000))])
    match = re.search(rb"c[\w.]+\n\w+\n", data)
    if match and dice.random() < 0.2:
        return data[:match.start()] + named + data[match.end():]
    return data[:at] + piece + data[dice.choice((at, after)):]


# archives, arrays, tensors

def in_zip(data, dice, others):
    """Change a header, or a member whose checksum is made right again."""
    if dice.random() < 0.3:
        signature = dice.choice((b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7"))
        at = data.index(signature) + dice.randrange(4, 46)
        width = dice.choice((1, 2, 4))
        value = dice.choice((0, 1, 8, 255, 0xFFFFFFFF, len(data))) % 256 ** width
        return data[:at] + value.to_bytes(width, "little") + data[at + width:]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        members = [(item.filename, source.read(item)) for item in source.infolist()]
    at = dice.randrange(len(members))
    pickles = [number for number, (name, _) in enumerate(members) if name.endswith((".pkl", ".npy"))]
    if pickles and dice.random() < 0.7:
        at = dice.choice(pickles)
    name, content = members[at]
    action = dice.randrange(8)
    if action == 0:
        del members[at]
    elif action == 1:
        members.append((name, content))
    elif action == 2:
        members[at] = (dice.choice(("../../x", "/tmp/x", "a/" * 500, name.upper(), "", name + "0")), content)
    else:
        aware = FORMATS.get(name.rpartition(".")[2]) if dice.random() < 0.8 else None
        members[at] = (name, aware(content, dice, []) if aware else dice.choice(BYTES)(content, dice, []))
    method = zipfile.ZIP_DEFLATED if dice.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), content, method)
    return out.getvalue()


def in_checkpoint(data, dice, others):
    return in_zip(data, dice, others) if data.startswith(b"PK") else in_pickle(data, dice, others)


def in_safetensors(data, dice, others):
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change_value(json.loads(data[8:8 + size]), dice)).encode(errors="surrogatepass")
    length = dice.choice((len(header), len(header), len(header), 0, 2 ** 63, size))
    return struct.pack("<Q", length) + header + data[8 + size:]


def in_array(data, dice, others):
    header = re.search(rb"\{.*?\}", data[:2000])
    text = header[0]
    value = dice.choice((b"(-1,)", b"(1, 2", b"(99999999999,)", b"()", b"(0, 0)", b"(2.5,)", b"(True, 4)", b"(3, 4, 0)",
                         b"(9223372036854775807, 8)", b"x", b"[3, 4]", b"(" * 150))
    kind = dice.choice((b"'|O'", b"'<f8'", b"'>f4'", b"'|V9'", b"'<U9'", b"[('a', '|O')]", b"'<M8[s]'", b"'<c16'",
                        b"5", b"'|V0'", b"[('start', '<f8')]", b"'" + b"f" * 9000 + b"'", b"__import__('os')"))
    typed = re.sub(rb"('descr': )('[^']*'|\[.*\])", rb"\1" + kind, text)
    text = dice.choice((re.sub(rb"\([^)]*\)", value, text), typed,
                        text.replace(b"False", dice.choice((b"True", b"5", b"None"))), text.replace(b"shape", b"shap"),
                        flip(text, dice, others)))
    padded = text if dice.random() < 0.1 else text.ljust(header.end() - header.start())
    return data[:header.start()] + padded + data[header.end():]


FORMATS = {"json": in_json, "jsonl": in_lines, "yaml": in_yaml, "csv": in_table, "txt": in_table, "pkl": in_pickle,
           "npz": in_zip, "pt": in_checkpoint, "pth": in_checkpoint, "safetensors": in_safetensors, "npy": in_array}
