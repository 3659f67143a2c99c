"""Proof that a test reached no host but this one, libraries' background threads and swallowed errors included."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

_HERE = {"localhost", "127.0.0.1", "::1", None, ""}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse names and addresses of other hosts; the test fails if anything asked for one."""
    asked: list[object] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in _HERE:
            asked.append(address)
            raise OSError(f"a test asked for {address}")
        connect(self, address)  # type: ignore[arg-type]

    def guarded_resolve(host: str | None, *arguments: object, **options: object) -> object:
        if host not in _HERE:
            asked.append(host)
            raise OSError(f"a test asked for {host}")
        return resolve(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    assert asked == []
