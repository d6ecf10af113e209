"""Recipes and sites in hostile or damaged YAML: one line that names the file, in bounded time."""
import time

import pytest

from egokit.config.build import ConfigError
from egokit.config.resolve import parse_overrides, resolve
from egokit.config.yaml_file import parse_yaml

LAUGHS = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" 
    for before, name in zip("abcdef", "bcdefg", strict=True))
TEXTS = [
    "[" * 100_000, "{a: " * 100_000, "- " * 3000, "a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", LAUGHS,
    LAUGHS.replace("<<", "q"), "seed: 1\nseed: 2", "train: {epochs: 1, epochs: 2}", "a: !!bool x", "a: !!int ''",
    "a: !!float ''", "a: !!timestamp x", "a: 2020-99-99", "seed: 1" + "0" * 6000, "seed: 1" + ":59" * 100_000,
    "seed: 0x" + "f" * 9000, "seed: 1e999", "a: '" + "x" * 100_000 + "'", "? {a: b}\n: c", "{[1]: 2}", "a: \0", "\0",
    "x", "[]", "0", "false", "a: *b", "---\na: 1\n---\nb: 1", "%YAML 9.9\n---\na: 1",
    "a: !!omap x", "<<: 1", "? !!set {a}\n: 1",
    "a: !!python/object/apply:os.system [touch x]", "null: 1", "1: 2", "task: {1: 2}", "train: {null: 2}", "train: &a",
    "train: !!set {epochs}", "init: !!binary aGk=", "seed: 2020-01-01", "~: {a: 1}", "\xff\xfe\0", "task.name: 1",
    "data.frames.x: 1", "site: 5", "site:", "site: [root]", "site: {root: 1}",
    "site: {root: \"a\\0b\"}", *(f"a: {mark}{'x' * 900_000}" for mark in ("!", "*", "&")),
    "%" + "x" * 900_000, "a: !!" + "x" * 900_000 + " 1", "task: {name: \"a\\ud800\"}",
]


@pytest.mark.parametrize("kind", ["recipe", "site"])
@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_wrong_file_is_one_line(project, kind, number):
    path = project / "params" / ("broken.yaml" if kind == "recipe" else "sites/broken.yaml")
    path.write_text(TEXTS[number], encoding="latin1")
    began = time.monotonic()
    names = ("broken", "tiny") if kind == "recipe" else ("toy/pretrain", "broken")
    try:
        resolve(*names)
    except ConfigError as error:
        message = str(error)
        assert "broken" in message, message
        assert len(message.splitlines()) == 1 and len(message) < 1000, message
    else:
        assert kind == "site"
    finally:
        path.unlink()
    assert time.monotonic() - began < 5


def test_a_file_in_another_encoding_or_too_large_is_named(project):
    path = project / "params/broken.yaml"
    for content in ("seed: 1 # é".encode("latin1"), b"# " + bytes(2 << 20), "seed: 1".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.yaml (is not UTF-8 text .* save it in UTF-8|has .* at most)"):
            resolve("broken", "tiny")
    path.write_bytes(b"\xef\xbb\xbf" + (project / "params/toy/pretrain.yaml").read_bytes())
    assert resolve("broken", "tiny").task.name == "egoclip"
    path.unlink()


def test_what_is_right_is_read():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": 2 * [{"x": 1, "y": 2}]}
    assert parse_yaml("") is None and parse_yaml("1: 2\n'1': 3") == {1: 2, "1": 3}


def test_deep_overrides_are_one_line():
    for overrides in (".".join("a" * 100_000) + "=1", "train.epochs=" + "[" * 100_000, "seed=" + "1" * 6000):
        with pytest.raises(ConfigError, match="override"):
            parse_overrides(overrides)
