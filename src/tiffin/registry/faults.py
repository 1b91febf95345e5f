"""The errors that a registry answers with.

Source: OCI distribution specification 1.1, "Error Codes".
"""

from __future__ import annotations

from typing import Any

from tiffin.errors import TiffinError

_STATUS = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNAUTHORIZED": 401,
    "DENIED": 403,
    "UNSUPPORTED": 405,
    "TOOMANYREQUESTS": 429,
}


class Fault(TiffinError):
    """A request that a registry refuses; ``code`` is the specification's."""

    def __init__(self, code: str, message: str, status: int | None = None, **detail: Any) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = status or _STATUS[code]
        self.detail = detail

    def document(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {
            "errors": [{"code": self.code, "message": self.message, "detail": self.detail or None}]
        }
