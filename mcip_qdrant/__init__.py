"""Search a pile of images by words and by pictures, with one embedding per image.

Public names are resolved at first use (PEP 562): `import mcip_qdrant` loads neither qdrant_client nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcip_qdrant.adoption import adopt
    from mcip_qdrant.bundle import Bundle
    from mcip_qdrant.errors import (
        BrokerError,
        BundleError,
        ClosedError,
        ConfigurationError,
        DeviceError,
        ExportError,
        ForeignCollectionError,
        ImageError,
        InvalidQueryError,
        McipError,
        MessageError,
        MissingExtraError,
        Reason,
        RunError,
        SourceError,
        SpaceMismatchError,
        StoreError,
        StoreUnavailableError,
        TextCutWarning,
        TuningError,
    )
    from mcip_qdrant.hit import Hit
    from mcip_qdrant.hits import Hits
    from mcip_qdrant.keys import point_id
    from mcip_qdrant.query import QueryEncoder
    from mcip_qdrant.request import Like, Query
    from mcip_qdrant.search import FacetValue, ImageCollection

__version__ = "0.1.0"

_HOME = {
    "BrokerError": "errors",
    "Bundle": "bundle",
    "BundleError": "errors",
    "ClosedError": "errors",
    "ConfigurationError": "errors",
    "DeviceError": "errors",
    "ExportError": "errors",
    "FacetValue": "search",
    "ForeignCollectionError": "errors",
    "Hit": "hit",
    "Hits": "hits",
    "ImageCollection": "search",
    "ImageError": "errors",
    "InvalidQueryError": "errors",
    "Like": "request",
    "McipError": "errors",
    "MessageError": "errors",
    "MissingExtraError": "errors",
    "Query": "request",
    "QueryEncoder": "query",
    "Reason": "errors",
    "RunError": "errors",
    "SourceError": "errors",
    "SpaceMismatchError": "errors",
    "StoreError": "errors",
    "StoreUnavailableError": "errors",
    "TextCutWarning": "errors",
    "adopt": "adoption",
    "TuningError": "errors",
    "point_id": "keys",
}

__all__ = [
    "BrokerError",
    "Bundle",
    "BundleError",
    "ClosedError",
    "ConfigurationError",
    "DeviceError",
    "ExportError",
    "FacetValue",
    "ForeignCollectionError",
    "Hit",
    "Hits",
    "ImageCollection",
    "ImageError",
    "InvalidQueryError",
    "Like",
    "McipError",
    "MessageError",
    "MissingExtraError",
    "Query",
    "QueryEncoder",
    "Reason",
    "RunError",
    "SourceError",
    "SpaceMismatchError",
    "StoreError",
    "StoreUnavailableError",
    "TextCutWarning",
    "TuningError",
    "adopt",
    "point_id",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
