"""Types of the options of methods. pydantic checks the options where a router, composer or gate is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
"""A number of adapters, samples, steps or rows: at least 1."""
Power = Annotated[int, Field(ge=0)]
"""An exponent: an integer of 0 or more."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share, from 0 to 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number greater than 0."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number of 0 or more."""
