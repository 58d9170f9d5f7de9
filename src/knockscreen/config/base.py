"""What every section of the configuration is made of: types, paths, a closed and frozen model."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]

DATA_FOLDER = "../shared/data"
"""What ``${KNOCKSCREEN_DATA}`` stands for where the environment does not say."""


def expand_path(path: str) -> str:
    """Return ``path`` with ``${NAME}`` replaced by that environment variable, where it is set."""
    values = {"KNOCKSCREEN_DATA": DATA_FOLDER, **os.environ}
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), path)


InputPath = Annotated[str, AfterValidator(expand_path)]
"""A path such as ``${KNOCKSCREEN_DATA}/counts/x.h5ad``, filled in when it is read."""


class Section(BaseModel):
    """A closed, frozen section of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")
