"""What the settings may be that belong to no target, or that a target of another project takes too lightly."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from thaw.run.folder import folder_name
from thaw.search.settings import SETTINGS

TOP_LEVEL: Mapping[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "monitor": str | None,
    "paths.data": str,
    "test": bool,
    "resume": Literal["never", "auto", "must"],
    "run.dir": Annotated[str, AfterValidator(folder_name)] | None,
    "checkpoint.every_n_steps": Annotated[int, Field(ge=1)] | None,
    "checkpoint.every_minutes": Annotated[float, Field(gt=0)] | None,
    "trainer.max_epochs": Annotated[int, Field(ge=1)] | None,
    "report.depth": Literal["none", "standard", "full"],
    "cache.dir": str | None,
    "cache.max_gb": Annotated[float, Field(ge=0)],
    **SETTINGS,
}
