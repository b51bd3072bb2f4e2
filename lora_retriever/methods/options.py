"""Types of the options of methods. pydantic checks the options where a router, composer or gate is made.

`true` is no number. YAML reads `1e-3` as text, so a number with decimals may be text.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _no_truth_value(value: object) -> object:
    """Refuse `true` and `false`, which pydantic would read as 1.0 and 0.0."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return value


Count = Annotated[int, Field(ge=1, strict=True)]
"""A number of adapters, samples, steps or rows: at least 1."""
Power = Annotated[int, Field(ge=0, strict=True)]
"""An exponent: an integer of 0 or more."""
Share = Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, le=1)]
"""A share, from 0 to 1."""
Positive = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, allow_inf_nan=False)]
"""A finite number greater than 0."""
NotNegative = Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0, allow_inf_nan=False)]
"""A finite number of 0 or more."""
