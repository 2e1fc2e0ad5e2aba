"""The error tree. Every error that a person can see is one line that says what is wrong and what to do.

MicroclusterError            code: stable word for the wire
├── UsageError               yours: a wrong option, a malformed id, a file that is not there   (exit 2)
├── KeyProblem               yours: a missing, wrong or unsafe key                             (exit 77, client 125)
├── Refused                  theirs: the manager understood and said no; carries its code      (exit 125)
├── StoreError               ours: the data directory cannot be used                           (exit 1)
│   └── DiskFull             nothing of the batch was stored; try again later
└── LinkError                the link
    ├── Unreachable          nobody listens there, or not before the deadline
    ├── ManagerGone          the connection broke, or went silent, after it stood
    └── ProtocolError        the peer speaks something else, or another version
"""

from __future__ import annotations


class MicroclusterError(Exception):
    """Base of all errors of this package; `code` is the stable word that travels on the wire."""

    code = "error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class UsageError(MicroclusterError):
    code = "usage"


class KeyProblem(MicroclusterError):
    code = "key"


class Refused(MicroclusterError):
    """The manager's answer was an error; `detail` is its whole header (for example `missing` of code "blobs")."""

    code = "refused"

    def __init__(self, message: str, code: str | None = None, detail: dict[str, object] | None = None) -> None:
        super().__init__(message, code)
        self.detail = detail or {}


class StoreError(MicroclusterError):
    code = "store"


class DiskFull(StoreError):
    code = "disk-full"


class LinkError(MicroclusterError):
    code = "link"


class Unreachable(LinkError):
    code = "unreachable"


class ManagerGone(LinkError):
    code = "gone"


class ProtocolError(LinkError):
    code = "protocol"
