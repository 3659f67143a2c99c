"""Start the server; SIGTERM and Ctrl-C end it."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from qdrant_server.catalog import Catalog
from qdrant_server.web import VERSION, Server

_ENDING = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="qdrant_server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder to keep everything in")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--api-key")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    # Threads inherit the mask, so the main thread alone hears of them, in sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    catalog = Catalog(options.data)
    with Server((options.host, options.port), catalog, options.api_key) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        where = f"http://{options.host}:{server.server_port}"
        sys.stdout.write(f"qdrant_server {VERSION} pid {os.getpid()} listening on {where}\n")
        sys.stdout.flush()
        signal.sigwait(_ENDING)
        server.shutdown()
    catalog.close()


if __name__ == "__main__":
    main()
