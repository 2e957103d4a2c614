"""The measurement of a Pass@1, recorded in `eval/summary.json`: its conditions and its identity.

Only numbers of equal measurements may be compared, ranked, averaged or pooled.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

EPISODE = ("turns", "proposals", "max_tokens")  # limits of episodes; None for single turns
CONDITIONS = ("benchmark", "split", "n", "samples", "temperature", "max_new_tokens", "prompt", *EPISODE)
# Fingerprints beyond the name and the number of problems; rows of older versions have none of them.
IDENTITY = ("problems", "messages", "rendered", "checker", "engine")
MEASUREMENT = CONDITIONS + IDENTITY

# Description of a difference in each part of the identity. A problem with a corrected gold answer is another problem.
DIFFERENTLY = {
    "problems": "on other problems",
    "messages": "with another prompt",
    "rendered": "with another chat template or tokenizer",
    "checker": "by another version of the answer check",
    "engine": "by another sampler",
}


def measurement_of(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    """Return the measurement of an evaluation. Older versions always took one sample and did not record this number."""
    return tuple(row.get(name, 1 if name == "samples" else None) for name in MEASUREMENT)


def has_identity(row: Mapping[Any, Any]) -> bool:
    """Report whether an evaluation has an identity; older versions did not record one (in a frame it is NaN)."""
    return any(isinstance(row.get(name), str) for name in IDENTITY)


def comparable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations of the most frequent measurement, by step. Of equally frequent ones, the latest is used."""
    by_step = sorted(rows, key=lambda row: row["step"])
    counts = Counter(measurement_of(row) for row in reversed(by_step))
    usual = max(counts, key=counts.__getitem__, default=None)
    return [row for row in by_step if measurement_of(row) == usual]


def differences(row: Mapping[Any, Any], other: Mapping[Any, Any], same_model: bool) -> list[str]:
    """Describe how two evaluations were measured differently; return an empty list if they may be compared.

    Different models render the same messages with different chat templates. This difference is ignored unless `same_model`.
    """
    if has_identity(row) != has_identity(other):
        return ["by an older version that recorded no fingerprints"]
    differing = {name for name in IDENTITY if row.get(name) != other.get(name)}
    return describe(differing if same_model else differing - {"rendered"})


def describe(differing: Set[str]) -> list[str]:
    """Describe differences in these parts of the identity.

    Other problems or messages always change the rendered prompts, so that `rendered` is not listed with them.
    """
    names = differing - {"rendered"} if differing & {"problems", "messages"} else differing
    return [DIFFERENTLY[name] for name in IDENTITY if name in names]


def columns(
    rows: Sequence[Mapping[Any, Any]], models: Sequence[str | None], names: Sequence[str] = MEASUREMENT
) -> list[str]:
    """Return the heading of the column of each evaluation.

    models  model of each row; different models may have different chat templates within a column
    names   parts of the measurement that must be equal within a column

    A heading is the benchmark. If a benchmark has several columns, their headings add how its measurements differ.
    """
    asked = [tuple(row.get(name) for name in names if name != "rendered") for row in rows]
    rendered: dict[Any, set[Any]] = defaultdict(set)
    for key, model, row in zip(asked, models, rows, strict=True):
        rendered[key, model].add(row.get("rendered"))
    apart = {key for (key, _), texts in rendered.items() if len(texts) > 1}
    keys = [(key, row.get("rendered") if key in apart else None) for key, row in zip(asked, rows, strict=True)]
    distinct = dict(zip(reversed(keys), reversed(rows), strict=True))  # the first of each
    headings: dict[Any, str] = {}
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        of_benchmark = [key for key in dict.fromkeys(keys) if distinct[key]["benchmark"] == benchmark]
        details = _details([distinct[key] for key in of_benchmark], names)
        for key, detail in zip(of_benchmark, details, strict=True):
            headings[key] = f"{benchmark} ({', '.join(detail)})" if detail else benchmark
    return [headings[key] for key in keys]


def _details(rows: Sequence[Mapping[Any, Any]], names: Sequence[str]) -> list[list[str]]:
    """Describe the conditions in which rows differ, and as few fingerprints as are needed to distinguish them.

    A row without an identity is described as such, without its missing fingerprints.
    """
    known = [row for row in rows if has_identity(row)]
    telling = [name for name in names if name not in IDENTITY and len({str(row.get(name)) for row in rows}) > 1]
    telling += [name for name in IDENTITY if len({row[name] for row in known}) > 1]
    for name in [name for name in reversed(IDENTITY) if name in telling]:
        fewer = [each for each in telling if each != name]
        if len({tuple(str(row.get(each)) for each in fewer) for row in known}) == len(known):
            telling = fewer
    details = []
    for row in rows:
        is_known = has_identity(row)
        detail = [f"{name} {row.get(name)}" for name in telling if is_known or name not in IDENTITY]
        details.append(detail if is_known or not known else [*detail, "not fingerprinted"])
    return details
