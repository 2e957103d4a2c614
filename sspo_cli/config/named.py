"""Defaults for a named model, which the defaults of the embedded task, such as a learning rate of 3e-3, would harm."""

from collections.abc import Iterator, Mapping
from typing import Any

# Customary values for reinforcement learning of instruct models, equal to those of the presets. Options that are not listed
# have the same default for every model.
NAMED_MODEL: dict[str, Any] = {
    "prompt": "think-answer",
    "rollout.max_new_tokens": 512,
    "optimizer.learning_rate": 1e-6,
    "optimizer.schedule": "constant",
    "cold_start.steps": 0,
    "cold_start.learning_rate": 1e-5,
    "cold_start.warmup_steps": 10,
    "evaluation.every": 100,
}
ADAPTERS = {"optimizer.learning_rate": 1e-5}  # with model.lora, because far fewer weights are trained
TASK = "gsm8k"
HAVE_TEST = ("arithmetic", "calculator", "calculator-two", "gsm8k", "codeact")  # tasks that have a test split


def named_model_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for a named model of options that are missing in `values`, by dotted name.

    Returns an empty dict if `values` does not name a model. Tasks default to GSM8K, and benchmarks to the test splits of those
    tasks that are published data sets. If a section is a validated object instead of a dictionary, none of its options is
    missing.
    """
    model = values.get("model")
    if not _given(model, "name"):
        return {}
    customary = {**NAMED_MODEL, **(ADAPTERS if _given(model, "lora") is not None else {})}
    missing = {name: value for name, value in customary.items() if not _is_given(values, name)}
    if "tasks" not in values:
        missing["tasks"] = [{"name": TASK}]
    if not _is_given(values, "evaluation.benchmarks"):
        missing["evaluation.benchmarks"] = list(_test_splits(values.get("tasks", missing.get("tasks"))))
    return missing


def _test_splits(tasks: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(tasks, list):
        return  # the validation of the field reports the error
    named = [task if isinstance(task, str) else _given(task, "name") for task in tasks if not _given(task, "path")]
    yield from ({"name": name, "split": "test"} for name in HAVE_TEST if name in named)


def _is_given(values: Mapping[str, Any], name: str) -> bool:
    section, _, option = name.rpartition(".")
    if not section:
        return option in values
    part = values.get(section, {})
    return not isinstance(part, dict) or option in part


def _given(section: Any, option: str) -> Any:
    """Return the value of an option in a section given as a dictionary or an object, or None."""
    return section.get(option) if isinstance(section, dict) else getattr(section, option, None)
