"""Where Redis is, what it is told, and how its errors read. Against real Redis servers: with a password, with TLS, full, away."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import redis
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError
from service_fixtures import start_redis
from services import HOST, RedisService, RedisTls, free_port
from unit_support import SPACE_A, SPACE_B
from worker_support import RUN, chunk

from mcip_qdrant.errors import BrokerError, ConfigurationError, McipError, RunError
from mcip_qdrant.workers.broker import (
    BrokerSettings,
    broker_errors,
    broker_settings,
    make_celery,
    open_redis,
    queue_name,
)
from mcip_qdrant.workers.ledger import Ledger

SECRET = "s:e/c@r#e t%41?ü"  # noqa: S105


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisService]:
    """A Redis that wants a password, also from the user `jo@n`."""
    with start_redis(tmp_path_factory.mktemp("locked"), aof=False, password=SECRET) as server:
        with redis.Redis.from_url(server.url) as client:
            client.acl_setuser("jo@n", enabled=True, passwords=[f"+{SECRET}"], categories=["+@all"], keys=["*"])
        yield server


def bare(server: RedisService) -> str:
    """Its URL without a password."""
    return f"{server.url.partition('://')[0]}://{HOST}:{server.port}/0"


def answers(settings: BrokerSettings) -> bool:
    with open_redis(settings) as client:
        return bool(client.ping())


def never_told(*said: object) -> None:
    """The secret is in none of these, however it is spelled."""
    for text in map(str, said):
        assert SECRET not in text
        assert SECRET not in unquote(text)
        assert "s%3Ae" not in text


# URLs.


@pytest.mark.parametrize(
    "url",
    [
        *("", "redis", "localhost:6379", "redis://", "redis:///0", "redis://:6379/0", "redis://user:pw@/0"),
        *("http://host:6379/0", "amqp://host/0", "unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        *("redis://host:port/0", "redis://host:99999/0", "redis://host:-1/0", "redis://host:0/0", "redis://[::1/0"),
        *("redis://host/abc", "redis://host/0/0", "redis://host//", "redis://host/-1", "redis://host/٣"),
    ],
)
def test_what_is_no_redis_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--broker: expected redis://HOST:6379/0 or rediss://HOST:6379/0"):
        broker_settings(url)


@pytest.mark.parametrize(
    "url", ["redis://host", "redis://host/", "redis://host:1234/5", "rediss://10.0.0.1:6380/0", "redis://[::1]:1/0"]
)
def test_urls_are_taken_as_they_are(url: str) -> None:
    settings = broker_settings(url)
    assert settings.url == settings.shown == url
    assert settings.visibility_timeout_s == 120


def test_a_scheme_in_capitals(broker: BrokerSettings) -> None:
    settings = broker_settings(broker.url.replace("redis://", "Redis://"))
    assert settings == broker_settings(broker.url)
    assert broker_settings("REDISS://host:1/0").tls


@pytest.mark.parametrize("option", ["socket_timeout=abc", "db=x", "no_such_option=1"])
def test_options_of_a_url_that_make_no_sense(broker: BrokerSettings, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--broker: .*{option.partition('=')[0]}"):
        open_redis(broker_settings(f"{broker.url}?{option}"))


@pytest.mark.parametrize("seconds", [-1, 0, 3.9, 3601, float("inf"), float("nan")])
def test_visibility_timeouts_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="MCIP_QDRANT_VISIBILITY_TIMEOUT_S=.*4 to 3600"):
        broker_settings("redis://host", seconds)


@pytest.mark.parametrize("seconds", [4, 30.5, 3600])
def test_visibility_timeouts(seconds: float) -> None:
    assert broker_settings("redis://host", seconds).visibility_timeout_s == seconds


# Passwords.


def test_the_password_of_the_environment(monkeypatch: pytest.MonkeyPatch, locked: RedisService) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", SECRET)
    settings = broker_settings(bare(locked))
    assert answers(settings)
    parts = urlsplit(settings.url)
    assert (parts.hostname, parts.port, unquote(parts.password or "")) == (HOST, locked.port, SECRET)
    assert settings.shown == bare(locked)
    never_told(settings, repr(settings), settings.shown)


def test_the_password_of_a_file(monkeypatch: pytest.MonkeyPatch, locked: RedisService, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n", encoding="utf-8")
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD_FILE", str(secret))
    assert answers(broker_settings(bare(locked)))
    # The environment's own comes first.
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", "other")
    assert broker_settings("redis://host").url == "redis://:other@host"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_password_file_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD_FILE", str(secret))
    with pytest.raises(ConfigurationError, match=f"MCIP_QDRANT_BROKER_PASSWORD_FILE={secret} cannot be read"):
        broker_settings("redis://host")


def test_a_password_in_the_url_stays(monkeypatch: pytest.MonkeyPatch, locked: RedisService) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", "other")
    settings = broker_settings(locked.url)
    assert settings.url == locked.url
    assert answers(settings)
    assert settings.shown == bare(locked)
    never_told(settings.shown, repr(settings))


def test_a_user_in_the_url_stays(monkeypatch: pytest.MonkeyPatch, locked: RedisService) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", SECRET)
    settings = broker_settings(f"redis://jo%40n@{HOST}:{locked.port}/0")
    with open_redis(settings) as client:
        assert client.acl_whoami() == "jo@n"
    assert settings.shown == bare(locked)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: "\0" not in text),
    st.sampled_from(["", "jo@"]),
)
@settings(deadline=None)
def test_any_password_is_quoted(password: str, user: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIP_QDRANT_BROKER_PASSWORD", password)
        settings = broker_settings(f"rediss://{user}host:1/2")
    kwargs = redis.connection.parse_url(settings.url)
    assert (kwargs["host"], kwargs["port"], kwargs["db"], kwargs["password"]) == ("host", 1, 2, password)
    assert settings.shown == "rediss://host:1/2"


@pytest.mark.parametrize("password", [None, "wrong-" + SECRET])
def test_a_refused_password(monkeypatch: pytest.MonkeyPatch, locked: RedisService, password: str | None) -> None:
    if password:
        monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", password)
    settings = broker_settings(bare(locked))
    with pytest.raises(ConfigurationError, match="refused the password; set MCIP_QDRANT_BROKER_PASSWORD") as caught:
        open_redis(settings)
    assert settings.shown in str(caught.value)
    never_told(caught.value, repr(caught.value))


def test_a_user_who_may_not(locked: RedisService) -> None:
    with redis.Redis.from_url(locked.url) as client:
        client.acl_setuser("guest", enabled=True, passwords=["+guest"], commands=["+ping"])
    settings = broker_settings(f"redis://guest:guest@{HOST}:{locked.port}/0")
    opened = Ledger(settings)
    with pytest.raises(ConfigurationError, match="refused the password.*no permissions"):
        opened.runs()
    opened.redis.close()


# TLS.


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> RedisTls:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return RedisTls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")


def test_tls_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert broker_settings("redis://host").tls == {}
    assert broker_settings("rediss://host").tls == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    monkeypatch.setenv("MCIP_QDRANT_BROKER_CA", "/ca.pem")
    tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}
    assert broker_settings("rediss://host").tls == tls
    assert broker_settings("redis://host").tls == {}
    assert make_celery(broker_settings("rediss://host")).conf.broker_use_ssl == tls
    assert not make_celery(broker_settings("redis://host")).conf.broker_use_ssl


def test_tls(monkeypatch: pytest.MonkeyPatch, tls_files: RedisTls, tmp_path: Path) -> None:
    with start_redis(tmp_path / "redis", aof=False, tls=tls_files, password=SECRET) as server:
        monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", SECRET)
        settings = broker_settings(bare(server))
        assert settings.url.startswith("rediss://")
        with pytest.raises(BrokerError, match="certificate verify failed") as caught:  # nobody vouches for it
            open_redis(settings)
        never_told(caught.value)
        monkeypatch.setenv("MCIP_QDRANT_BROKER_CA", str(tls_files.authority))
        assert answers(settings)


# Errors.


def raised(action: Callable[[], object], within: float) -> McipError:
    """The error, which must come soon."""
    started = time.monotonic()
    with pytest.raises(McipError) as caught:
        action()
    assert time.monotonic() - started < within
    return caught.value


def test_a_wrong_port_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCIP_QDRANT_BROKER_PASSWORD", SECRET)
    settings = broker_settings(f"redis://{HOST}:{free_port()}/0")
    error = raised(lambda: Ledger(settings), within=10)
    assert type(error) is BrokerError
    assert f"Redis at {settings.shown} cannot be used" in str(error)
    never_told(error, repr(error), error.__cause__)


def test_a_host_that_does_not_exist() -> None:
    error = raised(lambda: open_redis(broker_settings("redis://no-such-host.invalid:6379/0")), within=10)
    assert type(error) is BrokerError
    assert "redis://no-such-host.invalid:6379/0 cannot be used" in str(error)


def test_somebody_else_at_that_port() -> None:
    server = http.server.ThreadingHTTPServer((HOST, 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"redis://{HOST}:{server.server_address[1]}/0"
        assert type(raised(lambda: open_redis(broker_settings(url)), within=10)) is BrokerError
    finally:
        server.shutdown()
        server.server_close()


def test_a_full_redis_is_waited_for(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.redis.config_set("maxmemory", 1)
    freed = threading.Timer(0.5, ledger.redis.config_set, ("maxmemory", 0))
    freed.start()
    assert ledger.dispatch(chunk()).to_publish
    freed.join()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "trying for five minutes" in told
    assert "maxmemory" in told


def test_a_password_that_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    """It was changed while somebody was connected."""
    with start_redis(tmp_path) as server:
        ledger = Ledger(broker_settings(server.url))
        ledger.redis.config_set("requirepass", SECRET)
        with redis.Redis.from_url(server.url, password=SECRET) as other:
            other.client_kill_filter(_type="normal", skipme=True)
        error = raised(lambda: ledger.beat("w", {}), within=10)
        assert type(error) is ConfigurationError
        assert "refused the password" in str(error)
        ledger.redis.close()


def test_a_full_redis_says_so(broker: BrokerSettings, ledger: Ledger) -> None:
    ledger.patience.end()
    ledger.redis.config_set("maxmemory", 1)
    try:
        for action in (
            lambda: ledger.dispatch(chunk()),
            lambda: ledger.beat("w", {}),
            lambda: ledger.set_state(RUN, "dispatched"),
            lambda: ledger.refuse({}, "why"),
        ):
            error = raised(action, within=10)
            assert type(error) is BrokerError
            assert f"Redis at {broker.shown} is full (maxmemory reached)" in str(error)
        assert ledger.runs() == []  # reading goes on
    finally:
        ledger.redis.config_set("maxmemory", 0)
    assert ledger.dispatch(chunk()).to_publish


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis.ConnectionError("x"), BrokerError),
        (redis.TimeoutError("x"), BrokerError),
        (redis.ReadOnlyError("x"), BrokerError),
        (redis.OutOfMemoryError("x"), BrokerError),
        (OperationalError("x"), BrokerError),
        (ConnectionResetError("x"), BrokerError),
        (redis.AuthenticationError("x"), ConfigurationError),
        (redis.exceptions.NoPermissionError("x"), ConfigurationError),
        (RunError("x"), RunError),
        (ZeroDivisionError("x"), ZeroDivisionError),
    ],
)
def test_errors_are_translated(error: Exception, kind: type[Exception]) -> None:
    settings = BrokerSettings(f"redis://:{SECRET}@host:1/0")
    with pytest.raises(kind) as caught, broker_errors(settings):
        raise error
    assert type(caught.value) is kind
    never_told(caught.value)


# Queues and Celery.


def test_a_queue_belongs_to_one_model_and_one_source() -> None:
    names = {queue_name(space, source) for space in (SPACE_A, SPACE_B) for source in ("s", "t", "s.t")}
    assert len(names) == 6
    assert queue_name(SPACE_A, "ä%FF") == f"mcip_qdrant.{'a' * 16}.ä%FF"


def test_celery_is_told_what_the_guarantees_rest_on() -> None:
    conf = make_celery(broker_settings("redis://host", 30)).conf
    expected: dict[str, Any] = {
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "worker_concurrency": 3,
        "broker_connection_max_retries": None,
    }
    assert {name: conf[name] for name in expected} == expected
    assert conf.broker_transport_options["visibility_timeout"] == 30
    assert conf.broker_transport_options["socket_timeout"] > 0
