"""The engine, and the public names for writing a stage: `from vlpipe.pipeline import MapStage, Out, Reject, ...`.

Imported by `vlpipe.stages`. Imports neither stages (except `cli`, for the report page) nor models. A public name is loaded
when it is first used: the processes that decode untrusted images need `errors` alone, and start in half the time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlpipe.pipeline.errors import RowFault, SchemaError, StepFailed, VlpipeError
    from vlpipe.pipeline.files import File, ListFile, Listing, Weights
    from vlpipe.pipeline.shard import Out, Reject, heavy, need, ref, with_field
    from vlpipe.pipeline.stage import Dataset, GatherStage, Job, MapStage, SourceStage, Work

__all__ = [
    "Dataset",
    "File",
    "GatherStage",
    "Job",
    "ListFile",
    "Listing",
    "MapStage",
    "Out",
    "Reject",
    "RowFault",
    "SchemaError",
    "SourceStage",
    "StepFailed",
    "VlpipeError",
    "Weights",
    "Work",
    "heavy",
    "need",
    "ref",
    "with_field",
]

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module in ("errors", "files", "shard", "stage"):
                home = import_module(f"{__name__}.{module}")
                if name in vars(home):
                    return vars(home)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
