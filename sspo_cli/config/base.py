"""The base class of every section of options, and the types of numbers in options."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Bounded, unlike pydantic's types: larger counts and scales have no use in a run, and would hang it or overflow. A field with
# another bound is declared as int or float with both bounds, because of two `le` pydantic applies only the one given here.
LARGEST = 10**9
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST)]
Bounded = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TorchSeed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Options(BaseModel):
    """A section of options: unknown keys are errors, types are strict, and values are frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
