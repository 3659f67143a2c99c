"""What a server is told: where it listens, who may ask, and how much it takes in."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mcip_qdrant.errors import ConfigurationError

_MIB = 1 << 20
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?(:[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients may ask for; beyond them requests are refused, never queued without end.

    Bytes are of request bodies. `max_marks`: combining marks (accents and the like) in a row. `waiting_rows`: texts or pictures that
    may wait for the model. `patience_s`: a request whose rows would wait longer is refused. `min_bytes_per_s`: an upload that is
    slower for more than `upload_grace_s` is cut off.
    """

    max_body_bytes: int = 32 * _MIB
    max_pixels: int = 50_000_000
    max_texts: int = 2048
    max_images: int = 128
    max_text_chars: int = 200_000
    max_text_lines: int = 10_000
    max_marks: int = 1000
    max_hits: int = 250
    max_offset: int = 10_000
    requests_at_once: int = 512
    buffered_bytes: int = 256 * _MIB
    waiting_rows: int = 8192
    patience_s: float = 30.0
    connections: int = 800
    header_timeout_s: float = 10.0
    upload_grace_s: float = 10.0
    min_bytes_per_s: int = 16 * 1024
    send_timeout_s: float = 30.0
    stall_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Address, key, names and limits of one server.

    `key` None: no key is asked for, which `checked` allows on loopback addresses only. `allowed_hosts`: names, beside the
    address itself, under which browsers and proxies may address the server. `roots`: folder of each source, by encoded name.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    roots: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def checked(self) -> ServerSettings:
        """These settings, if they are safe, with `allowed_hosts` as requests are compared with them: lower case, without a port.

        Raises:
            ConfigurationError: unknown host, an allowed one that is no name, a key that no header can carry, or no key where others
                could reach the server.
        """
        for given in self.allowed_hosts:
            if not _NAME.fullmatch(given.strip()) and not _is_address(host_name(given)):
                raise ConfigurationError(
                    f"--allowed-host {given}: this is no name, such as photos.example.org, without https:// and without a path"
                )
        addresses = resolve(self.host, self.port)
        if self.key is None and (reason := self._reachable_by_others(addresses)):
            raise ConfigurationError(
                f"{reason}, so an API key is required: set MCIP_QDRANT_SERVE_KEY, or MCIP_QDRANT_SERVE_KEY_FILE to a file that "
                "holds it. Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise ConfigurationError(
                "MCIP_QDRANT_SERVE_KEY (or its file): a key is at least one printable ASCII character, without spaces"
            )
        return replace(self, allowed_hosts=tuple(map(host_name, self.allowed_hosts)))

    def _reachable_by_others(self, addresses: list[tuple[socket.AddressFamily, str]]) -> str | None:
        if not all(is_loopback(address) for _, address in addresses):
            return f"--host {self.host} can be reached from other machines"
        names = [
            given
            for given in self.allowed_hosts
            if not ((name := host_name(given)) == "localhost" or is_loopback(name))
        ]
        return f"--allowed-host {names[0]} lets others in through a proxy" if names else None


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Addresses that a host name stands for, IPv4 first.

    Raises:
        ConfigurationError: the name stands for nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise ConfigurationError(f"--host {host}: {exc}") from exc
    addresses = {(family, str(address[0])) for family, _, _, _, address in found}
    return sorted(addresses, key=lambda item: (item[0] != socket.AF_INET, item[1]))


def host_name(host: str) -> str:
    """`Example.org.:8000` -> `example.org`, `[::1]:8000` and `::1` -> `::1`."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if _is_address(host) else host.partition(":")[0].rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address (not a name) can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
