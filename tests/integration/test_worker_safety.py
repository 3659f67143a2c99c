"""What reaches a worker through the queue is not trusted, and secrets stay secret."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from celery import Celery
from conftest import Exported
from distributed import Cluster, Program, wait_for
from distributed_checks import assert_points, failures, make_archive
from kombu.serialization import register
from services import HOST, RedisTls

from mcip_qdrant.workers.broker import TASK, broker_settings, make_celery, queue_name
from mcip_qdrant.workers.dispatch import open_run
from mcip_qdrant.workers.ledger import Ledger
from mcip_qdrant.workers.message import Chunk

pytestmark = pytest.mark.timeout(300)


class Exploit:
    """Runs when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


def _send(app: Celery, queue: str, message: Any, **options: Any) -> None:
    app.send_task(TASK, args=[message], queue=queue, **options)


def test_messages_that_no_dispatcher_of_ours_sends(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 20)
    outside = make_archive(tmp_path / "outside", 2)
    secret = outside.folder / outside.names[0]
    inside = {
        "../outside/000/img-000000.jpg": "outside_root",
        "%2e%2e/outside/000/img-000001.jpg": "outside_root",
        f"000/../../outside/{outside.names[0]}": "outside_root",
        "/etc/passwd": "outside_root",
        str(secret): "outside_root",
        "link.jpg": "outside_root",
        "folder-link/img-000001.jpg": "outside_root",
        "000": "not_a_file",
        "000/img-%00.jpg": "gone",
        "nowhere.jpg": "gone",
    }
    with Cluster(tmp_path / "cluster", clip.folder, {"photos": archive.folder}) as cluster:
        (worker,) = cluster.start_workers(1)
        run = cluster.ingest(archive.folder).end(0).json["run_id"]
        links = [archive.folder / "link.jpg", archive.folder / "folder-link"]
        links[0].symlink_to(secret)
        links[1].symlink_to(secret.parent)
        settings = broker_settings(cluster.redis.url)
        ledger, app = Ledger(settings), make_celery(settings)
        sample = Chunk.from_message(ledger.info(run).sample)
        queue = queue_name(sample.space_id, "photos")
        crafted = Chunk.from_message({**sample.to_message(), "run": "crafted", "images": list(inside)})
        open_run(ledger, crafted, "tiny-clip", str(archive.folder))
        _send(app, queue, crafted.to_message())
        wait_for(lambda: cluster.settled("crafted") == len(inside), 30, worker)
        assert failures(cluster, "crafted") == {f"photos/{name}": reason for name, reason in inside.items()}
        # A refusal names the key that was asked for, and nothing of what lies there.
        assert "root:" not in worker.err + cluster.run("failures", "crafted", expect=3).out
        assert_points(cluster, archive)
        for link in links:
            link.unlink()

        # Half understood is not understood: each is refused whole, with a reason, and its images stay undone.
        message = {**sample.to_message(), "run": "other", "images": [archive.names[0]]}
        refused = {
            "message of format 2; this worker reads format 1": {**message, "format": 2},
            "fields ['shiny'] are missing or unknown": {**message, "shiny": True},
            "fields ['images'] have values that make no sense": {**message, "images": [1, 2]},
            "not a chunk of mcip-qdrant": "a string",
            "for source 'elsewhere'": {**message, "source": "elsewhere"},
            "for space_id aaaa": {**message, "space_id": "a" * 64},
        }
        for strange in refused.values():
            _send(app, queue, strange)
        exploited = tmp_path / "exploited"
        register("evil", pickle.dumps, pickle.loads, "application/x-python-serialize", "binary")
        _send(app, queue, Exploit(exploited), serializer="evil")
        app.send_task("os.system", args=["true"], queue=queue)
        _send(app, queue, {**message, "run": run, "images": list(archive.names)}, kwargs={"surplus": 1})

        done = cluster.ingest(archive.folder).end(0).json
        assert (done["unchanged"], done["failed"]) == (20, 0)
        cluster.wait_until_quiet()
        assert worker.running
        assert not exploited.exists()
        said = cluster.run("status", "--json").json["refused_messages"]
        whys = [item["why"] for item in said]
        for words in refused:
            assert sum(words in why for why in whys) == 1, whys
        assert "message(s) refused, the latest: " in cluster.run("status").out
        assert cluster.db.keys("mcip_qdrant:run:other:*") == []
        assert_points(cluster, archive)
        ledger.redis.close()
        app.close()


REDIS_PASSWORD, API_KEY = "pass:wörd/@?# of redis", "key-of-qdrant-0123456789"
SECRETS = (REDIS_PASSWORD, "of redis", "of%20redis", API_KEY)


def _assert_no_secret(*places: str) -> None:
    for place in places:
        for secret in SECRETS:
            assert secret not in place


def _command_lines() -> str:
    """Of every process of this machine, as `ps` shows them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return "\n".join(line for line in found if "redis-server" not in line and "qdrant_server" not in line)


def test_secrets_work_and_appear_nowhere(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 60)
    (archive.folder / "broken.jpg").write_bytes(b"nothing")
    by_value = {"MCIP_QDRANT_BROKER_PASSWORD": REDIS_PASSWORD, "MCIP_QDRANT_API_KEY": API_KEY}
    by_file = {}
    for name, value in by_value.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="utf-8")
        by_file[f"{name}_FILE"] = str(tmp_path / name)
    options = {"password": REDIS_PASSWORD}
    home, roots = tmp_path / "cluster", {"photos": archive.folder}
    with Cluster(home, clip.folder, roots, api_key=API_KEY, redis_options=options) as cluster:
        cluster.start_workers(1, env=by_value)
        cluster.start_workers(1, env=by_file)
        dispatcher = cluster.program("ingest", archive.folder, "--json", "--chunk-size", 5, env=by_file)
        run = cluster.newest_run()
        cluster.proxy.delay = 0.2
        cluster.proxy.mode = "slow"
        wait_for(lambda: cluster.settled(run) > 5, 30, cluster)
        _assert_no_secret(_command_lines())
        # What the libraries say when the connection breaks.
        cluster.redis.kill()
        time.sleep(2)
        cluster.redis.start()
        cluster.proxy.mode = "503"
        wait_for(lambda: any(worker.log("chunk postponed") for worker in cluster.workers), 30, cluster)
        cluster.proxy.mode = "pass"
        dispatcher.end(3)
        for arguments in ((run,), ("--json",)):
            cluster.run("status", *arguments, env=by_value)
        cluster.run("failures", run, env=by_value, expect=3)
        # Wrong or missing secrets: refused in a word, and the wrong one is not repeated either.
        wrong = {"MCIP_QDRANT_BROKER_PASSWORD": "of redis, but wrong", "MCIP_QDRANT_API_KEY": API_KEY}
        refusals: dict[Program, str] = {}
        none = {"MCIP_QDRANT_API_KEY": API_KEY}
        for env, command in ((wrong, ("worker",)), (wrong, ("ingest", archive.folder)), (none, ("status",))):
            words = "refused the password; set MCIP_QDRANT_BROKER_PASSWORD or MCIP_QDRANT_BROKER_PASSWORD_FILE"
            refusals[cluster.program(*command, env=env)] = words
        stranger = {**by_value, "MCIP_QDRANT_API_KEY": f"{API_KEY[:-1]}x"}
        refusals[cluster.program("worker", env=stranger)] = "refused the API key"
        refusals[cluster.program("ingest", archive.folder, env=stranger)] = "refused the API key"
        for program, words in refusals.items():
            assert words in program.end(4).err
        points = [json.dumps(point.payload) for point in cluster.points().values()]
        assert len(points) == 60
        metadata = str(cluster.client.get_collection(cluster.collection))
        said = [path.read_text(errors="replace") for path in home.glob("*.*")]
        assert len(said) > 15
        _assert_no_secret(metadata, *points, *said)
        assert any("127.0.0.1" in text and "broker" in text.lower() for text in said)
        # What Redis has written to its disk.
        _assert_no_secret(*(path.read_bytes().decode(errors="replace") for path in (home / "redis").rglob("*.aof")))


def test_tls(tmp_path: Path, clip: Exported) -> None:
    archive = make_archive(tmp_path / "photos", 30)
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    files = RedisTls(tmp_path / "redis.pem", tmp_path / "redis.key", tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(files.certificate)
    certificate.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other-ca.pem")
    home, roots = tmp_path / "cluster", {"photos": archive.folder}
    with Cluster(home, clip.folder, roots, redis_options={"tls": files, "password": "x y"}) as cluster:
        trusted = {"MCIP_QDRANT_BROKER_CA": str(files.authority), "MCIP_QDRANT_BROKER_PASSWORD": "x y"}
        cluster.start_workers(1, env=trusted)
        done = cluster.program("ingest", archive.folder, "--json", "--chunk-size", 10, env=trusted).end(0).json
        assert done["embedded"] == 30
        assert_points(cluster, archive)
        distrusted = [
            cluster.program(*command, env={**trusted, "MCIP_QDRANT_BROKER_CA": authority})
            for command, authority in (
                (("worker",), ""),
                (("ingest", archive.folder), ""),
                (("status",), str(tmp_path / "other-ca.pem")),
            )
        ]
        for program in distrusted:
            said = program.end(None)
            assert said.code in {1, 4}
            assert "certificate verify failed" in said.err
            assert len(said.err.splitlines()) == 1
        plain = cluster.run("status", env={"MCIP_QDRANT_BROKER": f"redis://{HOST}:{cluster.redis.port}/0"}, expect=1)
        assert len(plain.err.splitlines()) == 1
        assert cluster.run("status", done["run_id"], "--json", env=trusted).json["complete"]
