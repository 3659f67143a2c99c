"""Every error this package raises on purpose. (Two more stay inside the HTTP server, which turns them into answers.)

::

    McipError                     exit 1   anything below
    ├── ConfigurationError        exit 4   refuse to start; a supervisor should not restart
    │   ├── BundleError                    bundle missing, damaged, tampered with, of another format version
    │   ├── DeviceError                    the device asked for is not active
    │   ├── MissingExtraError              an optional dependency is not installed
    │   ├── SpaceMismatchError             bundle and collection belong to different models
    │   └── ForeignCollectionError         collection without our metadata
    ├── ExportError               exit 1   checkpoint or parity refused
    ├── TuningError               exit 1   training cannot start or go on; what was saved stays
    ├── SourceError               exit 1   the source of image references cannot be read
    ├── StoreError                exit 1   Qdrant refused or failed
    │   └── StoreUnavailableError          Qdrant is away, slow or overloaded (transient: retrying may help)
    ├── BrokerError               exit 1   Redis is away or refuses (transient: retrying may help)
    ├── MessageError              exit 1   a task message that this version cannot read
    ├── RunError                  exit 1   unknown run, or one that cannot do what was asked
    ├── InvalidQueryError         exit 1   empty text, unknown key, negative limit
    ├── ClosedError               exit 1   used after close()
    └── ImageError                exit 1   one image cannot be embedded (permanent: a dead letter, never a retry)

    TextCutWarning                         a UserWarning: a text is longer than the model reads
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Reason codes of dead letters: stable words that programs may match on."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    OUT_OF_MEMORY = "out_of_memory"
    UNREADABLE = "unreadable"
    GONE = "gone"
    NOT_A_FILE = "not_a_file"
    OUTSIDE_ROOT = "outside_root"
    NOT_FINITE = "not_finite"
    CRASHED_DECODER = "crashed_decoder"
    CRASHED_WORKER = "crashed_worker"
    QDRANT_UNAVAILABLE = "qdrant_unavailable"
    QDRANT_REFUSED = "qdrant_refused"


class McipError(Exception):
    """Base class; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(McipError):
    """Something that a person must change before any work can be right."""

    exit_code: ClassVar[int] = 4


class BundleError(ConfigurationError):
    """The bundle is missing, damaged, tampered with, or of a format this version does not read."""


class DeviceError(ConfigurationError):
    """The execution provider that was asked for is not active."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is needed here; the message names the extra to install."""


class SpaceMismatchError(ConfigurationError):
    """The collection holds another model's vectors: scores against them would be meaningless."""


class ForeignCollectionError(ConfigurationError):
    """The collection was not made by mcip-qdrant, so nobody vouches for its model."""


class ExportError(McipError):
    """A checkpoint cannot be exported, or the exported graphs missed a bound."""


class TuningError(McipError):
    """Training cannot start or go on: bad data, a loss that is not finite, too little memory. What was saved stays."""


class SourceError(McipError):
    """The list or folder of images itself cannot be used."""


class StoreError(McipError):
    """Qdrant answered with an error, or its local files cannot be used."""


class StoreUnavailableError(StoreError):
    """Qdrant is away, slow or overloaded; the same call may succeed later."""


class BrokerError(McipError):
    """Redis is away, full or refuses; the same call may succeed later."""


class MessageError(McipError):
    """A task message of another format version, or one that makes no sense."""


class RunError(McipError):
    """The ledger knows no such run, or the run cannot do what was asked of it."""


class InvalidQueryError(McipError, ValueError):
    """The query itself makes no sense: empty text, unknown key, negative limit."""


class ClosedError(McipError, RuntimeError):
    """Something was used after its `close()`."""


class TextCutWarning(UserWarning):
    """A text is longer than the model's context length; its end did not count."""


class ImageError(McipError):
    """One image cannot be embedded, and trying again would not help.

    `reason` is the dead letter's reason code.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
