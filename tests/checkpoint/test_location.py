"""Locations: local paths, and a hub emulated on 127.0.0.1 that counts what is asked of it."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from quantriage.checkpoint.location import resolve
from quantriage.checkpoint.safetensors_source import open_safetensors
from quantriage.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model.safetensors": save({"w": torch.ones(3)}),
    "config.json": b"{}",
    "tokenizer.model": b"x",
    "chat_template.jinja": b"y",
    "pytorch_model.bin": b"\x80",
    "modeling_evil.py": b"import os",
    "original/model.safetensors": b"z",
}


@dataclass
class Hub:
    endpoint: str
    fetched: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The four requests that huggingface_hub makes for a snapshot, for the one repository `tiny/model`."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/tiny/model/revision/"):
                if not path.endswith(("/main", COMMIT)):
                    return self.answer(404, b"", X_Error_Code="RevisionNotFound")
                info = {"id": "tiny/model", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}
                return self.answer(200, json.dumps(info).encode())
            if path.startswith("/api/models/tiny/model/tree/"):
                listing = [
                    {"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for f, b in FILES.items()
                ]
                return self.answer(200, json.dumps(listing).encode())
            prefix = f"/tiny/model/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if path.startswith(prefix) and name in FILES:
                if self.command == "GET":
                    found.fetched.append(name)
                etag = f'"{hashlib.sha1(FILES[name]).hexdigest()}"'
                return self.answer(200, FILES[name], ETag=etag, X_Repo_Commit=COMMIT)
            return self.answer(404, b"", X_Error_Code="RepoNotFound")

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_hub_repository_is_fetched_without_code_and_pickles(hub, tmp_path):
    folder = resolve("tiny/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    expected = {"model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"}
    assert set(hub.fetched) == expected
    assert {p.name for p in folder.iterdir()} == expected
    assert open_safetensors(folder).get("w").tolist() == [1, 1, 1]
    again = resolve("tiny/model", cache_dir=tmp_path, local_files_only=True)
    assert again == folder


def test_hub_errors(hub, tmp_path):
    with pytest.raises(CheckpointError, match="no such repository"):
        resolve("tiny/other", endpoint=hub.endpoint, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        resolve("tiny/model", "v9", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_offline(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve("tiny/model", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve("tiny/model", cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


def test_local_paths(tmp_path):
    for name in ("a.safetensors", "a.gguf"):
        (tmp_path / name).write_bytes(b"")
        assert resolve(str(tmp_path / name)) == tmp_path / name
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "source", ["nowhere/at/all", "./nowhere", "a.gguf", "x/y.safetensors", "-", "../a b"]
)
def test_nothing_there(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder or file"):
        resolve(source)


def test_pickle_and_other_files(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        resolve(str(tmp_path / "a.bin"))
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected a folder"):
        resolve(str(tmp_path / "a.txt"))
