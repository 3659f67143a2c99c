"""Dockerfile, Compose file, .env.example and docs/deploying.md: they agree, and keep what they promise. No Docker, no network."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from unit_support import SPACE_B, manifest

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE, DOCKERFILE, PAGE = ROOT / "docker-compose.yml", ROOT / "Dockerfile", ROOT / "docs" / "deploying.md"
WORKERS = ("worker-cpu", "worker-gpu")
SERVERS = ("redis", "qdrant")

compose: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
services: dict[str, Any] = compose["services"]
page = PAGE.read_text(encoding="utf-8")


def without(what: str) -> None:
    """Skip loudly; where CI is set, a missing tool is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing: NOT CHECKED")


def test_compose_file_fits_the_specification() -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        without("check-jsonschema (pip install check-jsonschema), which brings the Compose specification's schema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_services_and_profiles() -> None:
    assert set(services) == {*SERVERS, *WORKERS, "cli"}
    assert {name: service.get("profiles") for name, service in services.items()} == {
        "redis": None,
        "qdrant": None,
        "worker-cpu": ["cpu"],
        "worker-gpu": ["gpu"],
        "cli": ["cli"],
    }


def test_images_are_pinned() -> None:
    assert services["redis"]["image"] == "redis:7.4.11-alpine"
    assert services["qdrant"]["image"] == "qdrant/qdrant:v1.19.2"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    for name, runtime in (("worker-cpu", "cpu"), ("worker-gpu", "gpu"), ("cli", "cpu")):
        assert services[name]["image"] == f"mcip-qdrant:${{MCIP_QDRANT_VERSION:-{version[1]}}}-{runtime}"
        assert services[name]["build"] == {"context": ".", "args": {"RUNTIME": runtime}}


def test_ports_are_on_loopback() -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 5
    assert all(port.startswith("127.0.0.1:") for port in published)
    defaults = [re.findall(r":-(\d+)", port)[0] for port in published]
    assert len(set(defaults)) == len(defaults)


@pytest.mark.parametrize("name", [*SERVERS, *WORKERS])
def test_lasting_services_have_limits_health_and_time_to_stop(name: str) -> None:
    service = services[name]
    assert service["mem_limit"]
    assert service["cpus"]
    assert set(service["healthcheck"]) == {"test", "interval", "timeout", "start_period", "retries"}
    assert service["stop_grace_period"] in {"30s", "2m"}
    assert service["logging"]["options"]["max-file"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_refused_configuration_does_not_restart_for_ever() -> None:
    assert all(services[name]["restart"] == "on-failure:5" for name in WORKERS)
    assert services["cli"]["restart"] == "no"


@pytest.mark.parametrize("name", [*WORKERS, "cli"])
def test_our_containers_can_write_nothing_that_lasts(name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "${WORKER_UID:-10001}:${WORKER_GID:-10001}"
    targets = {mount["target"] for mount in service["volumes"]}
    assert targets == {"/bundle", "/sources/${ARCHIVE_NAME:-archive}"}
    assert all(mount["read_only"] and not mount["bind"]["create_host_path"] for mount in service["volumes"])
    assert set(service["depends_on"]) == set(SERVERS)
    assert all(needed == {"condition": "service_healthy"} for needed in service["depends_on"].values())


def test_workers_say_what_they_need() -> None:
    for name, device in (("worker-cpu", "cpu"), ("worker-gpu", "cuda:0")):
        environment = services[name]["environment"]
        assert environment["MCIP_QDRANT_DEVICE"] == device
        assert environment["MCIP_QDRANT_SOURCE_ROOTS"].endswith("=/sources/${ARCHIVE_NAME:-archive}")
        assert services[name]["ports"][0].endswith(f":{environment['MCIP_QDRANT_METRICS_PORT']}")
        assert services[name]["command"] == ["worker"]
    reserved = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert [device["driver"] for device in reserved] == ["nvidia"]
    assert "deploy" not in services["worker-cpu"]


def test_secrets_come_from_files_only() -> None:
    assert {name: secret["file"] for name, secret in compose["secrets"].items()} == {
        name: f"${{SECRETS_DIR:-./secrets}}/{name}" for name in ("qdrant_api_key", "redis_password")
    }
    for name in (*WORKERS, "cli"):
        environment = services[name]["environment"]
        assert environment["MCIP_QDRANT_API_KEY_FILE"] == "/run/secrets/qdrant_api_key"
        assert environment["MCIP_QDRANT_BROKER_PASSWORD_FILE"] == "/run/secrets/redis_password"  # noqa: S105 - a path
        assert environment["MCIP_QDRANT_BROKER"] == "redis://redis:6379/0"
    for service in services.values():
        for variable in service.get("environment", {}):
            assert not re.search(r"(KEY|PASSWORD|TOKEN|SECRET)$", variable), f"{variable} would be a secret literal"


def test_env_example_has_every_variable_with_its_default() -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    used = re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", text)
    assert len(used) == len(re.findall(r"(?<!\$)\$(?:\w|\{)", text)), "each variable has a default"
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert example.pop("COMPOSE_PROFILES") == ""
    assert example == dict(used)
    assert len(set(used)) == len(example), "one default per variable"


def test_every_variable_is_documented() -> None:
    variables = {name for service in services.values() for name in service.get("environment", {})}
    variables |= set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_FILE.read_text(encoding="utf-8")))
    variables |= set(re.findall(r"export (\w+)", str(services["qdrant"]["entrypoint"])))
    assert not {name for name in variables if f"`{name}`" not in page}


# --- The small scripts inside the Compose file, run for real


def script(service: str, key: str) -> str:
    command = services[service][key]
    return str(command[-1]).replace("$$", "$")


def test_redis_starts_with_password_and_append_only_file(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        without("redis-server")
    socket = tmp_path / "socket"
    shim = tmp_path / "docker-entrypoint.sh"
    shim.write_text(f'#!/bin/sh\nexec "$@" --dir {tmp_path} --port 0 --unixsocket {socket}\n')
    shim.chmod(0o755)
    secret = tmp_path / "secret"
    text = script("redis", "command").replace("/run/secrets/redis_password", str(secret))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_MAXMEMORY": "64mb"}

    for refused in ("", "two words", 'quoted"'):
        secret.write_text(refused)
        ended = subprocess.run(["sh", "-ec", text], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert "redis_password" in ended.stderr

    correct = "Correct-horse_9"
    secret.write_text(f"{correct}\n")

    def ask(*command: str, secret: str = "") -> str:
        return subprocess.run(
            ["redis-cli", "-s", str(socket), *command],
            env={**os.environ, "REDISCLI_AUTH": secret},
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    with subprocess.Popen(["sh", "-ec", text], env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while "PONG" not in ask("ping", secret=correct) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "NOAUTH" in ask("ping")
            settings = {
                name: ask("config", "get", name, secret=correct).split("\n")[1]
                for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "save")
            }
            line = Path(f"/proc/{server.pid}/cmdline").read_text(encoding="utf-8", errors="replace")
            assert "redis-server" in line, "Redis itself gets SIGTERM, not a shell"
            assert "Correct" not in line
        finally:
            server.terminate()
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(64 * 1024 * 1024),
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    assert server.returncode == 0


def test_qdrant_gets_its_key_from_the_file_and_refuses_an_empty_one(tmp_path: Path) -> None:
    program = tmp_path / "qdrant"
    program.write_text('#!/bin/sh\necho "key=$QDRANT__SERVICE__API_KEY pid=$$"\n')
    program.chmod(0o755)
    secret = tmp_path / "secret"
    text = script("qdrant", "entrypoint").replace("/run/secrets/qdrant_api_key", str(secret))
    for content, code in (("k3y\n", 0), ("", 1), ("\n", 1)):
        secret.write_text(content)
        with subprocess.Popen(["bash", "-ec", text], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as started:
            said, _ = started.communicate(timeout=20)
        assert started.returncode == code
        assert said == (f"key=k3y pid={started.pid}\n" if code == 0 else "")  # the shell has become Qdrant


@pytest.mark.parametrize("where", ["qdrant", *WORKERS, "Dockerfile"])
def test_health_check_tells_200_from_503_and_silence(where: str) -> None:
    answers = {"status": 200}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(answers["status"])
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    if where == "Dockerfile":
        command = json.loads(final_stage()["HEALTHCHECK"][0].split(" CMD ", 1)[1])
    else:
        command = [part.replace("$$", "$") for part in services[where]["healthcheck"]["test"][1:]]
    # A proxy in the environment must not be asked for this machine's own port.
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
    command[0] = sys.executable if command[0] == "python" else command[0]

    def healthy() -> bool:
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        original = "6333" if where == "qdrant" else "9808"
        command = [part.replace(original, str(server.server_port)) for part in command]
        environment["MCIP_QDRANT_METRICS_PORT"] = str(server.server_port)
        assert healthy()
        answers["status"] = 503
        assert not healthy()
        server.shutdown()
    assert not healthy()
    assert set(asked) == {"/readyz" if where == "qdrant" else "/health"}


# --- Dockerfile


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages as (instruction, arguments); the first holds what stands before any FROM."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: list[list[tuple[str, str]]] = [[]]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        instruction, arguments = line.split(None, 1)
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, arguments))
    return found


def final_stage() -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for instruction, arguments in stages()[-1]:
        grouped.setdefault(instruction, []).append(arguments)
    return grouped


def test_base_image_is_pinned_to_a_patch() -> None:
    assert [arguments for instruction, arguments in stages()[0] if instruction == "ARG"] == [
        "PYTHON_IMAGE=python:3.12.14-slim-bookworm"
    ]
    assert [stage[0][1] for stage in stages()[1:]] == ["${PYTHON_IMAGE} AS wheel", "${PYTHON_IMAGE} AS runtime"]


def test_final_image_holds_the_wheel_and_never_the_checkout() -> None:
    final = final_stage()
    assert final["COPY"] == ["--from=wheel /wheels/ /wheels/"]
    assert "ADD" not in final
    assert "--mount" not in " ".join(final["RUN"])
    assert final["WORKDIR"] == ["/home/mcip"]
    assert "[${RUNTIME},workers]" in " ".join(final["RUN"])
    assert "find_spec('torch') is None" in " ".join(final["RUN"])
    for _, arguments in [line for stage in stages() for line in stage if "pip " in line[1]]:
        for command in re.findall(r"pip (?:install|wheel)[^&]*", arguments):
            assert "--no-cache-dir" in command


def test_build_stage_copies_what_the_wheel_is_made_of() -> None:
    copied = {
        name.rstrip("/")
        for instruction, arguments in stages()[1]
        if instruction == "COPY"
        for name in shlex.split(arguments)[:-1]
    }
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    assert (
        copied
        == allowed
        == {"pyproject.toml", "README.md", "LICENSE", "mcip_qdrant", "export", "workers", "demo/world"}
    )
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_image_runs_the_worker_as_nobody_in_particular() -> None:
    final = final_stage()
    assert final["USER"] == ["10001:10001"]
    assert [line for line, _ in stages()[-1]].index("USER") > max(
        index for index, (line, _) in enumerate(stages()[-1]) if line == "RUN"
    )
    assert final["ENTRYPOINT"] == ['["mcip-qdrant"]']
    assert final["CMD"] == ['["worker"]']
    assert final["STOPSIGNAL"] == ["SIGTERM"]
    assert "MCIP_QDRANT_METRICS_PORT=9808" in final["ENV"][0]
    assert final["EXPOSE"] == ["9808"]


# --- docs/deploying.md


def blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)


def test_links_inside_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(anchors)) == len(anchors)
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", page) if link not in anchors} == set()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page):
        assert (PAGE.parent / target).exists(), target


def test_examples_on_the_page_can_be_parsed() -> None:
    python = blocks("python")
    assert len(python) == 4
    for source in python:
        ast.parse(source)

    class Loader(yaml.SafeLoader):
        """Knows Compose's own tag."""

    Loader.add_constructor(
        "!override",
        lambda loader, node: (
            loader.construct_mapping(node, deep=True)
            if isinstance(node, yaml.MappingNode)
            else loader.construct_sequence(node, deep=True)
        ),
    )
    override, scrape = [yaml.load(source, Loader) for source in blocks("yaml")]  # noqa: S506 - a SafeLoader
    second = override["services"]["worker-gpu-1"]
    assert second["extends"]["service"] in services
    assert second["deploy"].keys() == services["worker-gpu"]["deploy"].keys()
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert not any(second["ports"][0].split(":")[1] in port for port in ports)
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:9808", "127.0.0.1:9809"]


def test_unit_file_does_not_restart_what_restarting_cannot_help() -> None:
    (unit,) = blocks("ini")
    settings = dict(line.split("=", 1) for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line))
    assert settings["Restart"] == "on-failure"
    assert "4" in settings["RestartPreventExitStatus"].split()
    assert int(settings["TimeoutStopSec"]) >= 30
    assert "LoadCredential=redis_password:" in unit


def test_metrics_on_the_page_exist() -> None:
    source = (ROOT / "workers" / "metrics.py").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmcip_qdrant_(?:\w+)", re.sub(r"test_\w+", "", page))) - {"mcip_qdrant"}
    defined = set(re.findall(r'"(mcip_qdrant_\w+)"', source))
    assert len(named) >= 9
    assert {name for name in named if re.sub(r"_(total|info)$", "", name) not in defined} == set()


class Encoder:
    """Stands for `QueryEncoder`: knows one text, whose vector is its model's."""

    def __init__(self, vector: list[float], **of_manifest: Any) -> None:
        self._vector = vector
        self.bundle = SimpleNamespace(manifest=manifest(**of_manifest), embedding_dim=len(vector))

    def text(self, _text: str) -> list[float]:
        return self._vector

    def mixes(self, mixes: list[Any]) -> np.ndarray[Any, Any]:
        return np.array([self._vector] * len(mixes), dtype=np.float32)


@pytest.mark.parametrize(
    "problem", [None, "fewer points", "golden query not found", "graph not restored", "models mixed up"]
)
def test_alias_script_switches_only_when_counts_and_golden_queries_agree(
    monkeypatch: pytest.MonkeyPatch, problem: str | None
) -> None:
    import qdrant_client
    from qdrant_client import QdrantClient, models

    import mcip_qdrant.query
    from mcip_qdrant.collection import claim
    from mcip_qdrant.errors import SpaceMismatchError
    from mcip_qdrant.keys import point_id
    from mcip_qdrant.store import Store

    (source,) = [block for block in blocks("python") if "update_collection_aliases" in block]
    client = QdrantClient(":memory:")
    encoders = {
        "bundle-vit-l": Encoder([1.0, 0.0, 0.0]),
        "bundle-so400m": Encoder([0.0, 1.0, 0.0, 0.0], dim=4, space_id=SPACE_B),
    }
    for name, bundle in (("images-vit-l", "bundle-vit-l"), ("images-so400m", "bundle-so400m")):
        encoder = encoders[bundle]
        right, size = encoder.text(""), encoder.bundle.manifest.embedding_dim
        client.create_collection(name, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))
        claim(Store.of(client), name, encoder.bundle.manifest)
        vectors = {f"archive/{number}.jpg": [0.1, 0.1, 1.0, 0.0][:size] for number in range(20)}
        vectors["archive/2019/IMG_0001.jpg"] = right
        if problem == "golden query not found" and name == "images-so400m":
            vectors["archive/2019/IMG_0001.jpg"] = [0.0, -1.0, 0.0, 0.0]
        if problem == "fewer points" and name == "images-so400m":
            del vectors["archive/0.jpg"]
        points = [
            models.PointStruct(id=point_id(key), vector=vector, payload={"key": key}) for key, vector in vectors.items()
        ]
        client.upsert(name, points)
    if problem == "models mixed up":
        encoders["bundle-so400m"] = encoders["bundle-vit-l"]
    if problem == "graph not restored":
        whole = client.get_collection
        monkeypatch.setattr(client, "get_collection", lambda name: _without_graph(whole(name)))
    client.update_collection_aliases(
        [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name="images-vit-l", alias_name="images")
            )
        ]
    )
    monkeypatch.setenv("MCIP_QDRANT_API_KEY", "key")
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda *_, **__: client)
    monkeypatch.setattr(mcip_qdrant.query.QueryEncoder, "open", staticmethod(encoders.__getitem__))

    stops = SpaceMismatchError if problem == "models mixed up" else SystemExit
    if problem is None:
        exec(compile(source, str(PAGE), "exec"), {"__name__": "snippet"})  # noqa: S102 - our own page
    else:
        with pytest.raises(stops):
            exec(compile(source, str(PAGE), "exec"), {"__name__": "snippet"})  # noqa: S102
    leads_to = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
    assert leads_to == {"images": "images-so400m" if problem is None else "images-vit-l"}


def _without_graph(info: Any) -> Any:
    info.config.hnsw_config.m = 0
    return info
