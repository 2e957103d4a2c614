"""Messages for options that fail validation, with the probably intended name or spelling."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from sspo_cli.config.hints import hint_for_unknown, hint_for_value
from sspo_cli.errors import shorten

MOST_SENTENCES = 8
SHAPES = {
    "model_type": "it is a section of options",
    "model_attributes_type": "it is a section of options",
    "list_type": "it is a list",
}
LONGEST_VALUE = 120  # maximum number of characters of a value in a message


def explain(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each invalid option of a config of type `root`, with its dotted path."""
    for item in error.errors(include_url=False)[:MOST_SENTENCES]:
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"unknown option `{path}`{hint_for_unknown(item['loc'], root)}"
        elif item["type"] == "value_error":  # raised by our own validators, already a sentence
            yield str(item["ctx"]["error"])
        elif item["type"] == "missing":
            yield f"`{path}` has no default; give it a value"
        else:
            message = SHAPES.get(item["type"], item["msg"])
            value = shorten(_spell(item["input"]), LONGEST_VALUE)
            yield f"`{path}` = {value} is not valid: {message[0].lower()}{message[1:]}{hint_for_value(item, root)}"


def _spell(value: Any) -> str:
    """Format a value as in YAML, with null for None."""
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
