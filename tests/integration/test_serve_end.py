"""A server that is told to end does so in time, whatever the model does meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
from conftest import Exported

_SERVER = """
import signal, sys, time
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server import program
from mcip_qdrant.server.app import build_app
from mcip_qdrant.server.settings import ServerSettings

program._GRACE_S, program._END_S = 1, 3
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
settings = ServerSettings(port=0)
encoder = QueryEncoder.open(sys.argv[1], device="cpu")

def hang(_ids):
    print("hanging", flush=True)
    time.sleep(120)

encoder.encode_ids = hang
listening = program.listen(settings)
say = lambda: print(program.url_of(listening), flush=True)
app = build_app(encoder, settings, precision="fp32", provider="CPUExecutionProvider", on_ready=say)
program.serve(app, settings, listening)
"""


def test_it_ends_in_time_although_the_model_hangs(clip: Exported, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SERVER, str(clip.folder)]
    answers: list[httpx.Response] = []

    def ask(url: str) -> None:
        answers.append(httpx.post(f"{url}v1/embeddings", json={"input": "x"}, timeout=100))

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stdout is not None
        try:
            asking = threading.Thread(target=ask, args=(server.stdout.readline().strip(),))
            asking.start()
            assert server.stdout.readline() == "hanging\n"
            told = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            assert time.monotonic() - told < 60, "the call would have taken two minutes"
            asking.join(60)
        finally:
            server.kill()
    (answer,) = answers
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert answer.json()["error"]["code"] == "shutting_down"
