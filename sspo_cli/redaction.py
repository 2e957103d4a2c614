"""Removal of credentials from addresses before anything is stored or printed."""

import re
from typing import Any

HIDDEN = "***"
# `user:password@` of an address. An unencoded password may contain a slash; a port is not a password.
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+(?:[/?#]|$))[^\s@]*@(?:[^\s/?#@]*@)*|[^\s/?#]*@)")
_PARAMETER = re.compile(r"([?&][\w.-]*(?:key|token|secret|password|auth)[\w.-]*=)[^&#\s]+", re.IGNORECASE)


def redacted(value: Any) -> Any:
    """Replace the credentials of each address in a text, or in all texts of a JSON value, by `***`."""
    match value:
        case str():
            return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))
        case dict():
            return {key: redacted(item) for key, item in value.items()}
        case list() | tuple():
            return [redacted(item) for item in value]
    return value
