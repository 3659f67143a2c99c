"""The running server: what must be right before it listens, its sockets, and how it ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from mcip_qdrant.collection import check_space, describe
from mcip_qdrant.errors import ConfigurationError, McipError, StoreUnavailableError
from mcip_qdrant.query import QueryEncoder
from mcip_qdrant.server.protocol import protocol_with
from mcip_qdrant.server.settings import ServerSettings, resolve
from mcip_qdrant.store import Store

logger = logging.getLogger(__name__)

_BACKLOG = 512
_GRACE_S = 8
_END_S = 10


def warm_up(encoder: QueryEncoder) -> None:
    """Load both graphs and run each once, so that no request waits for that and a damaged one stops the start.

    Raises:
        BundleError, DeviceError, MissingExtraError: the model cannot run.
    """
    height, width = encoder.bundle.manifest.preprocess.size
    encoder.text("warm up")
    encoder.image(np.full((height, width, 3), 127, dtype=np.uint8))


def check_collection(store: Store, name: str, encoder: QueryEncoder, say: Callable[[str], object]) -> None:
    """Refuse another model's collection at once; what may come right by itself only gets a word.

    Raises:
        SpaceMismatchError, ForeignCollectionError: the collection is not this model's.
        StoreError: Qdrant refused.
    """
    try:
        if describe(store, name, attempts=1) is None:
            say(f"there is no collection {name!r} yet: searches answer 404 until one is ingested")
        else:
            check_space(store, name, encoder.bundle.manifest, attempts=1)
    except StoreUnavailableError as exc:
        say(f"{exc}. Searches answer 503 until it is back; embeddings work")


def listen(settings: ServerSettings) -> socket.socket:
    """The socket of `--host` and `--port`; port 0 takes a free one.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    family, address = resolve(settings.host, settings.port)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, settings.port))
        listening.listen(_BACKLOG)
    except OSError as exc:
        listening.close()
        hint = "; choose another --port" if exc.errno in {errno.EADDRINUSE, errno.EACCES} else ""
        raise ConfigurationError(f"--host {settings.host} --port {settings.port}: {exc.strerror}{hint}") from exc
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    address, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class _Server(uvicorn.Server):
    """uvicorn's server, in a process that ends in time."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is being answered; `_END_S` from now the process is gone."""
        last = threading.Timer(_END_S, _leave)
        last.daemon = True
        last.start()
        await super().shutdown(sockets)


def _leave() -> None:
    # A call into the model cannot be stopped, and Python would wait for its thread for as long as it takes.
    logger.warning("a call of the model, of the decoder or of Qdrant has not ended; leaving without it")
    logging.shutdown()
    os._exit(0)


def serve(app: ASGIApp, settings: ServerSettings, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; requests that are being answered are finished first, if they end in time.

    The process ends `_END_S` seconds after the signal, even if the caller has not come to its end by then.

    Raises:
        McipError: uvicorn could not start.
    """
    config = uvicorn.Config(
        app,
        # h11 alone: one parser to limit and to test, and no compiled part.
        http=protocol_with(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here depends on the client's address, so no header may claim another.
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_GRACE_S,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        # uvicorn has ended in order and raises the signal once more: the ordinary end of a server.
        return
    if not server.started:
        raise McipError("the server did not start; its log says why")
