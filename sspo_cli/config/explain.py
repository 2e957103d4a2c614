"""Messages for options that do not validate, with the probably intended name or spelling."""

from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

from sspo_cli.config.hints import hint_for_unknown, hint_for_value
from sspo_cli.errors import shorten

MOST_SENTENCES = 8
LONGEST_VALUE = 120  # characters of a value that a sentence repeats


def explain(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each wrong option of a config of type `root`, by its dotted path."""
    for item in error.errors(include_url=False)[:MOST_SENTENCES]:
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"unknown option `{path}`{hint_for_unknown(item['loc'], root)}"
        elif item["type"] == "value_error":  # from our own validators, already a sentence
            yield str(item["ctx"]["error"])
        else:
            value, message = shorten(repr(item["input"]), LONGEST_VALUE), item["msg"]
            if item["type"] in ("model_type", "model_attributes_type"):
                message = "it is a section of options"
            yield f"`{path}` = {value} is not valid: {message[0].lower()}{message[1:]}{hint_for_value(item, root)}"
