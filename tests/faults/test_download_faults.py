"""Weights from a Hub that fails in every way: words within a bounded time, and no part of a file is ever used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# A Hub of its own, over HTTP; the only change to Thaw and to the Hub's client is how long they wait.
CODE = """
import json, os, pathlib, shutil, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Hub(BaseHTTPRequestHandler):
    fault = ""
    def log_message(self, *_): pass
    def do_GET(self):
        if Hub.fault == "no answer":
            time.sleep(60)
        missing = Hub.fault == "not found"
        self.send_response(404 if missing else 200)
        self.send_header("Content-Length", "0" if missing else "1000")
        self.send_header("ETag", "a" * 40)
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if self.command == "GET" and not missing:
            self.wfile.write(b"x" * (1000 if Hub.fault == "other bytes" else 500))
            self.wfile.flush()
            if Hub.fault == "stalls":
                time.sleep(60)
    do_HEAD = do_GET

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

from thaw.errors import UserError
from thaw.model import hub
from thaw.model.timm import timm_network
hub.HUB_TIMEOUT = 1
found = {}
for Hub.fault in ("not found", "no answer", "half a body", "stalls", "other bytes"):
    began = time.monotonic()
    try:
        timm_network("resnet18", num_outputs=2, weights="pretrained")
        said = "no error"
    except UserError as error:
        said = str(error)
    left = [path.name for path in pathlib.Path("hub").rglob("*") if path.is_file() and path.stat().st_size >= 500]
    found[Hub.fault] = said, time.monotonic() - began, left
pathlib.Path("found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.fault("E14")
def test_weights_that_cannot_be_downloaded_whole_are_not_used(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_DOWNLOAD_TIMEOUT": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for fault, (said, seconds, left) in found.items():
        assert len(said.splitlines()) <= 6, fault
        assert seconds < 30, fault  # the client tries six times
        if fault != "other bytes":
            assert "must be had from the local cache or the Hub; 'timm/resnet18.a1_in1k' was not (" in said, fault
            assert "model.weights=none" in said
            assert not left, fault
    said, _, left = found["other bytes"]
    assert "model.weights must be a readable safetensors file" in said
    assert left
