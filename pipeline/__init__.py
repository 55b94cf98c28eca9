"""The engine, and the public names for writing a stage: `from vlpipe.pipeline import MapStage, Out, Reject, ...`.

Imported by `vlpipe.stages`. Imports neither stages (except `cli`, for the report page) nor models.
"""

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
