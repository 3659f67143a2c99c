"""A worker's settings, and how what is wrong with them reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unit_support import open_folder, without_privileges

from mcip_qdrant.errors import ConfigurationError
from mcip_qdrant.session import Device
from mcip_qdrant.source import parse_roots
from mcip_qdrant.workers.broker import broker_settings
from mcip_qdrant.workers.settings import WorkerSettings, visibility_timeout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a few archives in it."""
    for name in ("photos", "a=b", "Größe 100%"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Source roots.


def test_a_folder_names_its_source(home: Path) -> None:
    assert parse_roots([f"{home}/photos"]) == {"photos": home / "photos"}
    assert parse_roots(["photos/", f"{home}/a=b"]) == {"photos": home / "photos", "a=b": home / "a=b"}
    assert parse_roots(["."]) == {home.name: home}
    assert parse_roots([f"{home}/photos/../Größe 100%"]) == {"Größe 100%25": home / "Größe 100%"}


def test_a_name_may_be_given(home: Path) -> None:
    found = parse_roots([f"one={home}/photos", "two=photos", "ä%=photos"])
    assert found == dict.fromkeys(("one", "two", "ä%25"), home / "photos")
    assert list(found) == ["one", "two", "ä%25"]


def test_an_equals_sign_in_the_name_of_a_folder(home: Path) -> None:
    assert parse_roots(["a=b"]) == {"a=b": home / "a=b"}
    assert parse_roots([f"{home}/a=b"]) == {"a=b": home / "a=b"}
    assert parse_roots([f"x={home}/a=b"]) == {"x": home / "a=b"}
    assert parse_roots(["x=a=b"]) == {"x": home / "a=b"}


def test_a_name_that_is_not_text(home: Path) -> None:
    name = b"caf\xe9"
    os.mkdir(os.path.join(os.fsencode(home), name))  # noqa: PTH102, PTH118 - a name that is not UTF-8
    assert parse_roots([os.fsdecode(name)]) == {"caf%E9": home / os.fsdecode(name)}


def test_the_source_of_a_link_is_where_it_leads(home: Path) -> None:
    """As `ingest` names it."""
    (home / "current").symlink_to("photos")
    assert parse_roots(["current"]) == {"photos": home / "photos"}
    assert parse_roots(["current=current"]) == {"current": home / "photos"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], r"no source: say --source-root \[NAME=\]DIR"),
        ([""], "no source"),
        (["nowhere"], "--source-root nowhere: nowhere does not exist"),
        (["x=nowhere"], "--source-root x=nowhere: nowhere does not exist"),
        (["photos", "x=nowhere"], "--source-root x=nowhere"),
        (["file"], "--source-root file: file is not a folder"),
        (["photos", "photos"], "--source-root photos: source 'photos' is given twice"),
        (["photos", "photos=a=b"], "source 'photos' is given twice"),
        (["x=photos", "x=photos"], "source 'x' is given twice"),
        (["=photos"], "source name '' cannot be used"),
        (["a/b=photos"], "source name 'a/b' cannot be used"),
        ([".=photos"], "source name '.' cannot be used"),
        (["..=photos"], r"source name '\.\.' cannot be used"),
        (["x\n=photos"], "cannot be used"),
        (["/"], "source name .* cannot be used"),
        (["x="], r"--source-root x=: expected \[NAME=\]DIR"),
        (["="], "expected"),
    ],
)
def test_roots_that_make_no_sense(home: Path, given: list[str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_roots(given)


def test_a_folder_that_may_not_be_read() -> None:
    with open_folder() as folder:
        (folder / "closed").mkdir(mode=0o700)
        said = without_privileges(
            """
            import sys
            from mcip_qdrant.errors import ConfigurationError
            from mcip_qdrant.source import parse_roots
            """,
            """
            try:
                parse_roots([f"x={sys.argv[1]}"])
            except ConfigurationError as exc:
                print(exc)
            """,
            str(folder / "closed"),
        )
        assert said == [f"--source-root x={folder}/closed: {folder}/closed cannot be read: Permission denied"]


# The environment.

NEEDED = {
    "MCIP_QDRANT_BUNDLE": "/bundle",
    "MCIP_QDRANT_URL": "http://qdrant:6333",
    "MCIP_QDRANT_BROKER": "redis://redis:6379/0",
    "MCIP_QDRANT_SOURCE_ROOTS": "photos",
}


@pytest.fixture
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All that a worker must be told."""
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_least_that_a_worker_must_be_told(environment: pytest.MonkeyPatch, home: Path) -> None:
    settings = WorkerSettings.from_environment()
    assert settings == WorkerSettings(
        bundle=Path("/bundle"),
        qdrant="http://qdrant:6333",
        broker=broker_settings("redis://redis:6379/0"),
        roots={"photos": home / "photos"},
    )
    assert settings.chunk_budget_s == 30


def test_everything_that_a_worker_may_be_told(environment: pytest.MonkeyPatch, home: Path) -> None:
    for name, value in {
        "SOURCE_ROOTS": "photos:two=a=b",
        "COLLECTION": "other",
        "DEVICE": "cpu",
        "CONCURRENCY": "5",
        "MEMORY_LIMIT_MB": "512",
        "METRICS_HOST": "0.0.0.0",
        "METRICS_PORT": "9808",
        "STALL_S": "12.5",
        "VISIBILITY_TIMEOUT_S": "40",
        "BROKER_PASSWORD": "secret",
    }.items():
        environment.setenv(f"MCIP_QDRANT_{name}", value)
    settings = WorkerSettings.from_environment()
    assert settings == WorkerSettings(
        bundle=Path("/bundle"),
        qdrant="http://qdrant:6333",
        broker=broker_settings("redis://redis:6379/0", 40),
        roots={"photos": home / "photos", "two": home / "a=b"},
        collection="other",
        device=Device.parse("cpu"),
        concurrency=5,
        memory_mb=512,
        metrics_host="0.0.0.0",
        metrics_port=9808,
        stall_s=12.5,
    )
    assert settings.broker.url == "redis://:secret@redis:6379/0"
    assert "secret" not in repr(settings)
    assert settings.chunk_budget_s == 10


@pytest.mark.parametrize("absent", [[name] for name in NEEDED] + [list(NEEDED), list(NEEDED)[1:3]])
@pytest.mark.parametrize("empty", [False, True])
def test_whatever_is_missing_is_named(environment: pytest.MonkeyPatch, absent: list[str], empty: bool) -> None:
    for name in absent:
        if empty:
            environment.setenv(name, "")
        else:
            environment.delenv(name)
    with pytest.raises(ConfigurationError, match="mcip-qdrant worker --help says what they mean") as caught:
        WorkerSettings.from_environment()
    assert [name for name in NEEDED if name in str(caught.value)] == absent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("MCIP_QDRANT_CONCURRENCY", value) for value in ("many", "0", "-1", "2.5", "65", "nan", "inf", "1e99")),
        *(("MCIP_QDRANT_MEMORY_LIMIT_MB", value) for value in ("4g", "0", "63", "-1", "inf", "nan")),
        *(("MCIP_QDRANT_METRICS_PORT", value) for value in ("http", "-1", "65536", "80.5", "nan")),
        *(("MCIP_QDRANT_STALL_S", value) for value in ("3 min", "0", "-180", "nan", "inf")),
        *(("MCIP_QDRANT_VISIBILITY_TIMEOUT_S", value) for value in ("soon", "0", "-1", "3", "4000", "nan", "inf")),
    ],
)
def test_numbers_that_make_no_sense(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name}=.*expected"):
        WorkerSettings.from_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MCIP_QDRANT_BROKER", "http://redis"),
        ("MCIP_QDRANT_SOURCE_ROOTS", "nowhere"),
        ("MCIP_QDRANT_SOURCE_ROOTS", ":"),
        ("MCIP_QDRANT_DEVICE", "tpu"),
    ],
)
def test_other_settings_that_make_no_sense(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError):
        WorkerSettings.from_environment()


def test_the_visibility_timeout_by_itself(environment: pytest.MonkeyPatch) -> None:
    assert visibility_timeout() == 120
    environment.setenv("MCIP_QDRANT_VISIBILITY_TIMEOUT_S", "7.5")
    assert visibility_timeout() == 7.5
    environment.setenv("MCIP_QDRANT_VISIBILITY_TIMEOUT_S", "")
    assert visibility_timeout() == 120
