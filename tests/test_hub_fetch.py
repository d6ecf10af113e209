"""What is fetched from a hub, by a server of this machine that answers as the Hugging Face hub does."""
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from tiny_folders import tiny_folder
from tiny_peers import clip_tokenizer, tiny_file

import egokit
from egokit.model import hub
from egokit.model.checkpoints import WeightsError

ROOT, COMMIT = Path(__file__).parents[1], "a" * 40


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download asks for; `server.folder` is its only model, o/m."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        if path.startswith("/o/m/resolve/") and (content := files.get(path.rpartition("/")[2])) is not None:
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        if path.startswith("/api/models/o/m/tree/"):
            return self.json([{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(
                content).hexdigest()} for name, content in files.items()])
        if path == "/step":
            return self.answer(200, b"")
        if path.startswith("/api/models/o/m"):
            return self.json({"id": "o/m", "modelId": "o/m", "sha": COMMIT, "private": False, "tags": [],
                              "siblings": [{"rfilename": name} for name in files]})
        return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "remote").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.folder, server.asked = tmp_path / "remote", []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(code, home, endpoint):
    """Run Python with a hub of its own; return what it printed and said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", f"import egokit\n{code}"], env=environment, capture_output=True,
                          text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_a_fetched_model_is_found_again_without_the_hub(server, tmp_path):
    """What was not fetched of it, such as a pickle, does not make it incomplete."""
    tiny_folder(server.folder, "clip", parts=2)
    (server.folder / "pytorch_model.bin").write_bytes(b"code")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    snapshot = tmp_path / f"home/hub/models--o--m/snapshots/{COMMIT}"
    code = f"""
import pathlib, urllib.request
from egokit.model.peers import tokenizers
for missing in ("", "", "model-00002-of-00002.safetensors", "tokenizer.json"):  # as other programs leave the cache
    if missing: (pathlib.Path({str(snapshot)!r}) / missing).unlink()
    tokenizers.load.cache_clear()
    urllib.request.urlopen({endpoint + "/step"!r})
    print(*egokit.load("hf:o/m").encode_text(["a b"]).shape)
"""
    assert run(code, tmp_path / "home", endpoint)[0].splitlines() == ["1 16"] * 4
    steps = "\n".join(server.asked).split("/step")
    assert steps[1].strip() and not steps[2].strip() and steps[3].strip() and steps[4].strip(), steps
    assert not any("pytorch_model" in path for path in server.asked)


@pytest.mark.slow
def test_a_peers_tokenizer_is_fetched_once(server, tmp_path):
    clip_tokenizer(server.folder)
    (server.folder / "pytorch_model.bin").write_bytes(b"code")
    path = tiny_file(tmp_path / "lavila.pth", "lavila_tsfb")
    code = f"print(*egokit.load({str(path)!r}, tokenizer='o/m').encode_text(['a b']).shape)"
    for endpoint in (f"http://127.0.0.1:{server.server_port}", "http://127.0.0.1:9"):
        assert run(code, tmp_path / "home", endpoint)[0].split() == ["1", "16"]
    assert not any("pytorch_model" in path for path in server.asked)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_said_at_once_and_in_one_line(tmp_path):
    """transformers' own loader tries six times, 24 s, and says each."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        path = tiny_file(tmp_path / "lavila.pth", "lavila_tsfb")
        code = f"""
for act in (lambda: egokit.load({str(path)!r}).encode_text("a"), lambda: egokit.load("hf:o/m")):
    try: act()
    except egokit.WeightsError as error: print(error)
"""
        begin = time.monotonic()
        printed, said = run(code, tmp_path / "home", endpoint)
    assert time.monotonic() - begin < 20 and not said
    first, second = printed.splitlines()
    assert first.startswith("LaViLa reads texts by CLIP's tokenizer, but 'openai/clip-vit-base-patch16'")
    for line in (first, second):
        assert "(the hub can't be reached)" in line and "http" not in line and "go online once" in line


@pytest.mark.parametrize("error, words", [
    (OSError("at https://example.org/x/y it failed\nsecond"), "OSError: at … it failed"),
    (OSError(), "no more is said"),
    (type("GatedRepoError", (OSError,), {})("401"), "its owner has to grant access")])
def test_reasons_are_one_line_without_addresses(tmp_path, monkeypatch, error, words):
    def fails(name, local_files_only=False, **options):
        raise error
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(WeightsError) as raised:
        hub.snapshot("someone/nothing", cache_dir=tmp_path)
    assert words in str(raised.value) and "\n" not in str(raised.value) and "http" not in str(raised.value)
    with pytest.raises(WeightsError, match="of the hub, then on the hub"):
        egokit.load(tiny_file(tmp_path / "l.pth", "lavila_tsfb"), tokenizer="someone/nothing").encode_text("a")
