"""What a worker does not start with: one clear line, the right exit code, no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Exported
from distributed import Cluster
from services import HOST, free_port

pytestmark = pytest.mark.timeout(300)
AT_ONCE = 3


@dataclass(frozen=True)
class Refusal:
    """Arguments and environment that a worker refuses, with which code and words. `folder` in them is a scratch folder."""

    code: int
    words: str
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    celery: bool = False


CELERY_NEEDS = ("MCIP_QDRANT_BUNDLE", "MCIP_QDRANT_URL", "MCIP_QDRANT_BROKER", "MCIP_QDRANT_SOURCE_ROOTS")
REFUSALS = {
    "no bundle": Refusal(4, "does not exist", ("--bundle", "{folder}/nowhere")),
    "damaged bundle": Refusal(4, "visual.onnx", ("--bundle", "{folder}/damaged")),
    "unfinished bundle": Refusal(4, "manifest.json", ("--bundle", "{folder}/unfinished")),
    "cuda": Refusal(4, "cuda", ("--device", "cuda")),
    "device": Refusal(4, "toaster", ("--device", "toaster")),
    "no root": Refusal(4, "--source-root {folder}/nowhere", ("--source-root", "{folder}/nowhere")),
    "file as root": Refusal(4, "--source-root a={folder}/file", ("--source-root", "a={folder}/file")),
    "root twice": Refusal(4, "given twice", ("--source-root", "{folder}", "--source-root", "{name}={folder}")),
    "redis away": Refusal(1, "Redis at redis://127.0.0.1:{free}/0", ("--broker", "redis://:secret@127.0.0.1:{free}/0")),
    "qdrant away": Refusal(1, "cannot be reached", ("--qdrant", "http://127.0.0.1:{free}")),
    "not redis": Refusal(4, "expected redis://", ("--broker", "amqp://localhost")),
    "not qdrant": Refusal(1, "Qdrant at", ("--qdrant", "http://127.0.0.1:{redis}")),
    "embedded": Refusal(4, "needs a Qdrant server", ("--qdrant", "{folder}/qdrant")),
    "foreign collection": Refusal(4, "adopt", ("--collection", "foreign")),
    "port taken": Refusal(4, "choose another --metrics-port", ("--metrics-port", "{redis}")),
    "timeout": Refusal(4, "MCIP_QDRANT_VISIBILITY_TIMEOUT_S=soon", env={"MCIP_QDRANT_VISIBILITY_TIMEOUT_S": "soon"}),
    "password file": Refusal(
        4, "MCIP_QDRANT_BROKER_PASSWORD_FILE", env={"MCIP_QDRANT_BROKER_PASSWORD_FILE": "{folder}/nowhere"}
    ),
    "no root given": Refusal(2, "--source-root", env={"MCIP_QDRANT_SOURCE_ROOTS": ""}),
    "celery without settings": Refusal(
        4, f"set {', '.join(CELERY_NEEDS)};", env=dict.fromkeys(CELERY_NEEDS, ""), celery=True
    ),
    "celery with processes": Refusal(2, "use threads", ("--pool", "processes"), celery=True),
    "celery and redis away": Refusal(
        1, "Redis at", env={"MCIP_QDRANT_BROKER": "redis://127.0.0.1:{free}/0"}, celery=True
    ),
    "celery with a broken number": Refusal(
        4, "MCIP_QDRANT_CONCURRENCY=many", env={"MCIP_QDRANT_CONCURRENCY": "many"}, celery=True
    ),
    "celery with a broken broker": Refusal(
        4, "expected redis://", env={"MCIP_QDRANT_BROKER": "localhost:6379"}, celery=True
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: Exported) -> Path:
    home = tmp_path_factory.mktemp("refusals")
    (home / "file").touch()
    shutil.copytree(clip.folder, home / "damaged")
    graph = home / "damaged" / "visual.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    shutil.copytree(clip.folder, home / "unfinished")
    (home / "unfinished" / "manifest.json").unlink()
    return home


@pytest.fixture(scope="module")
def cluster(folder: Path, clip: Exported) -> Iterator[Cluster]:
    with Cluster(folder / "cluster", clip.folder, {folder.name: folder}) as running:
        yield running


def test_workers_that_do_not_start(cluster: Cluster, folder: Path) -> None:
    cluster.client.create_collection("foreign", vectors_config={"size": 32, "distance": "Cosine"})
    places = {"folder": folder, "name": folder.name, "free": free_port(), "redis": cluster.redis.port}
    waiting = dict(REFUSALS)
    wrong = []
    while waiting:
        started = {}
        for name in list(waiting)[:AT_ONCE]:
            refusal = waiting.pop(name)
            env = {key: value.format(**places) for key, value in refusal.env.items()}
            flags = [flag.format(**places) for flag in refusal.flags]
            command = ["-m", "celery", "-A", "mcip_qdrant.workers.app"] if refusal.celery else ["-m", "mcip_qdrant"]
            started[name] = refusal, cluster.program("worker", *flags, env=env, command=command)
        for name, (refusal, program) in started.items():
            said = program.end(None, within=60)
            lines = [line for line in said.err.splitlines() if not line.startswith("{")]
            message = refusal.words.format(**places)
            if said.code != refusal.code or message not in said.err or "secret" in said.err:
                wrong.append((name, said.code, said.err))
            elif refusal.code != 2 and [line.startswith("mcip-qdrant: ") for line in lines] != [True]:
                wrong.append((name, "one line", said.err))
    assert not wrong, "\n".join(map(str, wrong))
    assert HOST in cluster.env["MCIP_QDRANT_BROKER"]
    assert cluster.db.keys("*") == []
