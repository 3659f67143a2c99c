"""uvicorn's HTTP/1.1 protocol, with limits on connections and on how long a request's head may take."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mcip_qdrant.server.settings import Limits

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def protocol_with(limits: Limits) -> type[H11Protocol]:
    """The protocol class for these limits; uvicorn makes one object of it per connection."""

    class GuardedProtocol(H11Protocol):
        _head_due: asyncio.TimerHandle | None = None
        _next_look: asyncio.TimerHandle | None = None
        _was_closing = False
        _taken_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look()
            if len(self.connections) > limits.connections:
                transport.write(_FULL)
                transport.close()
                return
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # A trickle of header bytes must not restart the clock, so it is set only where it is not running.
            if self.conn.their_state is h11.IDLE:
                self._expect_head()
            else:
                self._head_came()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._head_came()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            self._taken()
            if self._next_look is not None:
                self._next_look.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            # Not every send of uvicorn's own goes through ours, which gives up by itself.
            self._taken_due = self.loop.call_later(limits.send_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._taken()
            super().resume_writing()

        def _taken(self) -> None:
            if self._taken_due is not None:
                self._taken_due.cancel()
                self._taken_due = None

        def _look(self) -> None:
            """Closing waits until the client has taken what was sent, and a client may never do that."""
            closing = self.transport.is_closing()
            if closing and self._was_closing:
                self.transport.abort()
                return
            self._was_closing = closing
            self._next_look = self.loop.call_later(limits.send_timeout_s, self._look)

        def _expect_head(self) -> None:
            if self._head_due is None:
                self._head_due = self.loop.call_later(limits.header_timeout_s, self._too_late)

        def _head_came(self) -> None:
            if self._head_due is not None:
                self._head_due.cancel()
                self._head_due = None

        def _too_late(self) -> Any:
            self._head_due = None
            if not self.transport.is_closing():
                self.transport.close()

    return GuardedProtocol
