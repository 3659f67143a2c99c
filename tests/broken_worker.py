"""`mcip-qdrant` with something broken on purpose. BROKEN says what:

- `abort`: decoding a marked image ends the process.
- `eat`: decoding a marked image takes memory without end (up to 4 GB).
- `encoder`: the process ends when the model is given a marked image (one that is black).
- `slow`: the model takes 60 ms an image.
- `hang`: decoding a marked image never ends, as a read from a dead mount.

A child that is spawned for decoding imports this file again, so it is broken, too.
"""

from __future__ import annotations

import os
import time
from typing import Any

import mcip_qdrant.encoder
import mcip_qdrant.prepare

MARK = b"this image breaks decoders"
_HOW = os.environ.get("BROKEN", "")
_decode, _encode = mcip_qdrant.prepare.decode, mcip_qdrant.encoder.ImageEncoder.encode


def _broken_decode(data: bytes, **options: Any) -> Any:
    if MARK in data:
        if _HOW == "abort":
            os.abort()
        if _HOW == "hang":
            time.sleep(100_000)
        if _HOW == "eat":
            hoard = []
            for _ in range(64):
                hoard.append(b"x" * (64 << 20))
                time.sleep(0.03)
    return _decode(data, **options)


def _broken_encode(self: Any, pixels: Any) -> Any:
    if _HOW == "slow":
        time.sleep(0.06 * len(pixels))
    if _HOW == "encoder" and not pixels.any(axis=(1, 2, 3)).all():
        os.abort()
    return _encode(self, pixels)


if __name__ in {"__main__", "__mp_main__"}:  # this program, or a child that it spawned
    mcip_qdrant.prepare.decode = _broken_decode
    mcip_qdrant.encoder.ImageEncoder.encode = _broken_encode  # type: ignore[method-assign]

if __name__ == "__main__":
    from mcip_qdrant.cli.main import main

    main()
