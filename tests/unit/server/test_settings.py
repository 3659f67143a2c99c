"""A server that others could reach does not start without a key."""

from __future__ import annotations

import pytest

from mcip_qdrant.errors import ConfigurationError
from mcip_qdrant.server.settings import ServerSettings, is_loopback, resolve


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert ServerSettings(host=host).checked().key is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(ConfigurationError, match="MCIP_QDRANT_SERVE_KEY_FILE"):
        ServerSettings(host=host).checked()
    assert ServerSettings(host=host, key="a-long-enough-key").checked().host == host


def test_a_name_for_a_proxy_needs_one() -> None:
    with pytest.raises(ConfigurationError, match=r"photos\.example lets others in"):
        ServerSettings(allowed_hosts=("localhost", "photos.example")).checked()
    assert ServerSettings(allowed_hosts=("localhost:8000", "LOCALHOST.", "127.0.0.2", "::1")).checked()


@pytest.mark.parametrize(
    "given", ["https://photos.example", "photos.example/", "*.example", "user@photos.example", "a b", "", ":80", "-"]
)
def test_what_no_request_could_match_is_no_name(given: str) -> None:
    with pytest.raises(ConfigurationError, match="--allowed-host .*this is no name"):
        ServerSettings(key="a-long-enough-key", allowed_hosts=(given,)).checked()


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\nb", " x"])
def test_a_key_must_fit_into_a_header(key: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        ServerSettings(key=key).checked()


def test_the_key_is_not_shown() -> None:
    assert "s3cret" not in repr(ServerSettings(key="s3cret"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "a" * 300])
def test_an_unknown_host_is_named(host: str) -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        ServerSettings(host=host).checked()


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "[::1]", "::1%lo")))
    assert not any(map(is_loopback, ("localhost", "0.0.0.0", "::", "10.0.0.1", "", "127.0.0.1.example")))


def test_ipv4_comes_first() -> None:
    assert resolve("localhost", 0)[0][1] == "127.0.0.1"
