"""Who is answered: by name, by origin, by content type and by key."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from mcip_qdrant.server.access import Head, refusal
from mcip_qdrant.server.settings import ServerSettings, host_name

LOCAL = ServerSettings()
KEYED = ServerSettings(host="0.0.0.0", key="s3cret-s3cret")
PROXIED = ServerSettings(key="s3cret-s3cret", allowed_hosts=("photos.example",))


def status(settings: ServerSettings, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    """What a request meets; 200 if it may pass."""
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    found = refusal(Head(method, path, {b"host": b"localhost:8000", **named}), settings)
    return 200 if found is None else int(found.status)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "localhost."]
)
def test_this_machine_goes_by_its_own_names(host: str) -> None:
    assert status(LOCAL, host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""),
        *("10.0.0.5:8000", "0.0.0.0:8000", "[::]:8000", "evil.example@localhost", "photos.example"),
    ],
)
def test_a_name_that_somebody_points_at_this_machine_is_refused(host: str) -> None:
    assert status(LOCAL, host=host) == HTTPStatus.MISDIRECTED_REQUEST
    assert status(LOCAL, "/", host=host) == HTTPStatus.MISDIRECTED_REQUEST


def test_names_can_be_allowed() -> None:
    authorization = "Bearer s3cret-s3cret"
    assert status(PROXIED, host="photos.example", authorization=authorization) == 200
    assert status(PROXIED, host="Photos.Example:443", authorization=authorization) == 200
    assert status(PROXIED, host="other.example", authorization=authorization) == 421
    assert status(KEYED, host="anything.example", authorization=authorization) == 200


@pytest.mark.parametrize("given", ["photos.example:8443", "Photos.Example.", "photos.example"])
def test_an_allowed_name_may_be_given_as_it_stands_in_addresses(given: str) -> None:
    settings = ServerSettings(key="s3cret-s3cret", allowed_hosts=(given,)).checked()
    assert status(settings, host="photos.example:8443", authorization="Bearer s3cret-s3cret") == 200
    assert status(settings, host="other.example", authorization="Bearer s3cret-s3cret") == 421


def test_health_is_for_everybody() -> None:
    assert status(PROXIED, "/health", host="10.0.0.5") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},  # another program of this machine may be somebody else's
        {"origin": "http://localhost:8000.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/thumbnails/x", "/metrics", "/static/app.js"])
def test_other_websites_get_nothing(headers: dict[str, str], path: str) -> None:
    assert status(LOCAL, path, **headers) == HTTPStatus.FORBIDDEN


def test_a_link_to_the_page_may_be_followed() -> None:
    assert status(LOCAL, "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200
    assert status(LOCAL, "/", sec_fetch_site="cross-site", sec_fetch_mode="cors") == 403
    assert status(LOCAL, "/v1/models", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 403


def test_the_page_itself_is_answered() -> None:
    headers = {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin", "content_type": "application/json"}
    assert status(LOCAL, "/v1/search", "POST", **headers) == 200
    behind_proxy = {"host": "127.0.0.1:8000", "origin": "https://photos.example", "content_type": "application/json"}
    assert status(PROXIED, "/v1/search", "POST", authorization="Bearer s3cret-s3cret", **behind_proxy) == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_what_a_form_can_send_is_refused(kind: str) -> None:
    assert status(LOCAL, "/v1/search", "POST", content_type=kind) == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_taken(kind: str) -> None:
    assert status(LOCAL, "/v1/search", "POST", content_type=kind) == 200


@pytest.mark.parametrize(
    "given",
    ["", "s3cret-s3cret", "Basic s3cret-s3cret", "Bearer", "Bearer s3cret", "Bearer s3cret-s3crets", "Bearer ключ"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/search", "/v1/thumbnails/x", "/metrics", "/nothing", "/v1"])
def test_data_needs_the_key(given: str, path: str) -> None:
    assert status(KEYED, path, authorization=given) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("given", ["Bearer s3cret-s3cret", "bearer  s3cret-s3cret "])
def test_the_key_opens(given: str) -> None:
    assert status(KEYED, authorization=given) == 200


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/health"])
def test_the_page_without_data_needs_none(path: str) -> None:
    assert status(KEYED, path) == 200


def test_host_names() -> None:
    given = ("A.b:1", "a.b.", "a.b.:1", "[::1]:1", "::1", " x ", "", ":1")
    assert [host_name(host) for host in given] == ["a.b", "a.b", "a.b", "::1", "::1", "x", "", ""]


def test_a_wrong_key_is_told_apart_from_none() -> None:
    def message(given: str) -> str:
        found = refusal(Head("GET", "/v1/models", {b"host": b"x", b"authorization": given.encode()}), KEYED)
        assert found is not None
        assert "s3cret" not in found.message
        return found.message

    assert "not the API key" in message("Bearer s3cret")
    assert all("is needed" in message(given) for given in ("", "Bearer", "Basic s3cret-s3cret"))
