"""Schemas of the files in a run folder, against which the files are checked when they are read.

Files may come from older versions, other programs or editors. Fields that a schema lists must have the type in the schema.
Additional fields are allowed.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from sspo_cli.errors import UserError, shorten

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = str | None
exact = with_config(ConfigDict(strict=True, allow_inf_nan=False))


def _is_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without a time zone")
    return text


def _has_step(row: Any) -> Any:
    if isinstance(row, dict) and (type(row.get("step")) is not int or row["step"] < 0):
        raise ValueError("a row without a valid step")
    return row


@exact
class _Overlap(TypedDict):
    task: str
    benchmark: str
    rows: Count
    of: Count
    problems: Count


@exact
class _LeftOut(TypedDict):
    problems: Count
    fingerprint: str


@exact
class _Data(TypedDict):
    problems: Count
    fingerprint: str
    overlaps: list[_Overlap]
    left_out: _LeftOut | None


@exact
class _Start(TypedDict):
    revision: NotRequired[Text]
    packages: NotRequired[dict[str, str]]


@exact
class _Extension(TypedDict):
    after: Count
    steps: Annotated[list[Count], Field(min_length=2, max_length=2)]


@exact
class _Origin(TypedDict):
    run: str
    step: Count
    optimizer: NotRequired[bool]
    extended: NotRequired[list[_Extension]]
    origin: NotRequired["_Origin"]


@exact
class _Config(_Start):
    options: dict[str, Any]
    changes: NotRequired[list[dict[str, Any]]]
    data: NotRequired[_Data]
    resumed: NotRequired[list[_Start]]
    extended: NotRequired[list[_Extension]]
    origin: NotRequired[_Origin]


@exact
class _Status(TypedDict):
    state: Literal["running", "finished", "failed", "interrupted"]
    step: Count
    reason: NotRequired[Text]
    started: NotRequired[Annotated[str, AfterValidator(_is_time)]]


@exact
class _Part(TypedDict):
    n: Annotated[int, Field(gt=0)]
    correct: Annotated[float, Field(ge=0)]
    pass_at_1: Share
    low: Share
    high: Share


@exact
class _Evaluation(TypedDict):
    step: Count
    benchmark: str
    pass_at_1: NotRequired[Share]
    n: NotRequired[Annotated[int, Field(gt=0)]]
    correct: NotRequired[Annotated[float, Field(ge=0)]]
    truncated: NotRequired[Annotated[float, Field(ge=0)]]
    split: NotRequired[Text]
    samples: NotRequired[Annotated[int, Field(gt=0)]]
    temperature: NotRequired[float]
    max_new_tokens: NotRequired[int | None]
    prompt: NotRequired[Text]
    turns: NotRequired[int | None]
    proposals: NotRequired[int | None]
    max_tokens: NotRequired[int | None]
    episodes: NotRequired[dict[str, float]]
    parts: NotRequired[dict[str, _Part]]
    identity: NotRequired[Text]
    problems: NotRequired[Text]
    messages: NotRequired[Text]
    rendered: NotRequired[Text]
    checker: NotRequired[Text]
    engine: NotRequired[Text]
    weights: NotRequired[Text]
    path: NotRequired[Text]
    trained_on: NotRequired[int | None]


@exact
class _Answer(TypedDict):
    id: str
    gold: str
    correct: bool
    format: NotRequired[float]
    tokens: NotRequired[int]
    finish: NotRequired[str]
    status: NotRequired[str]
    identity: NotRequired[Text]


@exact
class _StepAnswer(_Answer):
    step: Count


@exact
class _Problem(TypedDict):
    place: Count
    rows: list[_Answer]


@exact
class _Weights(TypedDict):
    step: Count
    epoch: int
    minibatch: int
    width: Annotated[float, Field(gt=0)]
    positive: Annotated[list[Count], Field(min_length=1)]
    negative: Annotated[list[Count], Field(min_length=1)]


@exact
class _Completion(TypedDict):
    step: Count
    rollout: Count
    problem: str
    completion: str
    extracted: Text
    r_answer: float
    r_format: float
    advantage: float | None
    tokens: Count
    truncated: bool
    pieces: NotRequired[list[str] | None]
    weights: NotRequired[list[float | None] | None]
    written: NotRequired[list[Count]]
    outcome: NotRequired[dict[str, Any]]


@exact
class _Model(TypedDict):
    model: str


@exact
class _Best(TypedDict):
    step: Count


CONFIG: TypeAdapter[Any] = TypeAdapter(_Config)
STATUS: TypeAdapter[Any] = TypeAdapter(_Status)
EVALUATIONS: TypeAdapter[Any] = TypeAdapter(list[_Evaluation])
METRICS: TypeAdapter[Any] = TypeAdapter(
    Annotated[dict[str, float | None], BeforeValidator(_has_step)],
    config=ConfigDict(strict=True, allow_inf_nan=False),
)
ROW: TypeAdapter[Any] = TypeAdapter(dict[str, Any], config=ConfigDict(strict=True))
STEP_ROW: TypeAdapter[Any] = TypeAdapter(
    Annotated[dict[str, Any], BeforeValidator(_has_step)], config=ConfigDict(strict=True)
)
WEIGHTS: TypeAdapter[Any] = TypeAdapter(_Weights)
COMPLETION: TypeAdapter[Any] = TypeAdapter(_Completion)
ANSWER: TypeAdapter[Any] = TypeAdapter(_StepAnswer)
PARTIAL_PROBLEM: TypeAdapter[Any] = TypeAdapter(_Problem)
MEASURED_MODEL: TypeAdapter[Any] = TypeAdapter(_Model)
BEST: TypeAdapter[Any] = TypeAdapter(_Best)


def check_shape(value: T, shape: TypeAdapter[Any], where: str) -> T:
    """Return `value` unchanged. Raises UserError if it does not match the schema `shape`; the message begins with `where`."""
    try:
        shape.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        content = f"{f'`{path}`' if path else 'its content'} = {shorten(repr(first['input']), 60)}"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{where} does not have the format that sspo writes, {content}: {message[0].lower()}{message[1:]}"
        ) from None
    return value
