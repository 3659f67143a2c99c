"""Errors with Qdrant's status codes and wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def wrong_input(message: str) -> ApiError:
    """What the caller sent makes no sense here."""
    return ApiError(400, f"Wrong input: {message}")


def format_error(message: str) -> ApiError:
    """The body is not what the call takes."""
    return ApiError(400, f"Format error in JSON body: {message}")


def not_found(message: str) -> ApiError:
    """No such collection, point or alias."""
    return ApiError(404, f"Not found: {message}")


def no_collection(name: str) -> ApiError:
    """The error that clients recognise a missing collection by."""
    return not_found(f"Collection `{name}` doesn't exist!")


def unsupported(what: str) -> ApiError:
    """Real Qdrant may do it; this one does not."""
    return ApiError(501, f"Not implemented by the test server: {what}")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Translate what the engine raises: bare `Exception`, whose text says what a server would answer."""
    try:
        yield
    except Exception as exc:
        if type(exc) is not Exception:
            raise
        text = str(exc)
        if text.startswith("No point with id"):
            raise not_found(f"{text} found") from exc
        if text.startswith("Service runtime error"):
            raise ApiError(500, f"Service internal error: {text}") from exc
        raise wrong_input(text) from exc
