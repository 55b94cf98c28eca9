"""Columns for ground-truth objects (to train a detector) and for the regions that a detector predicts.

All detectors share one region record: feature, box, all class probabilities, the likeliest class and attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.shard import heavy

BOX = pa.list_(pa.float32(), 4)  # x1, y1, x2, y2 in pixels of the upright image
OBJECT = pa.struct([("box", BOX), ("label", pa.string()), ("attributes", pa.list_(pa.string()))])
OBJECTS = pa.list_(OBJECT)  # light column `objects`

ROW_GROUP_BYTES = 32 << 20
SCALARS = (("obj", np.int16), ("obj_conf", np.float32), ("attr", np.int16), ("attr_conf", np.float32))

Arrays = Mapping[str, npt.NDArray[Any]]  # field of a region -> (N, ...), of one image


def region_type(feat_dim: int, num_probs: int) -> pa.StructType:
    """Returns the type of a region, whose `feat` has `feat_dim` values and `prob` has `num_probs`, the last for background.

    obj, obj_conf: index and probability of the likeliest class except background. attr, attr_conf: those of the likeliest
    attribute; `attr` is -1 if the detector has no attributes.
    """
    return pa.struct(
        [
            ("feat", pa.list_(pa.float16(), feat_dim)),
            ("box", BOX),
            ("prob", pa.list_(pa.float16(), num_probs)),
            *((name, pa.from_numpy_dtype(dtype)) for name, dtype in SCALARS),
        ]
    )


def region_fields(feat_dim: int, num_probs: int) -> tuple[pa.Field, pa.Field, pa.Field]:
    """Returns the fields a region stage adds: heavy `regions`, light `region_tags` (class names) and
    `regions_weights` (digest of the detector)."""
    return (
        heavy("regions", pa.list_(region_type(feat_dim, num_probs))),
        pa.field("region_tags", pa.list_(pa.string())),
        pa.field("regions_weights", pa.string()),
    )


def group_rows(feat_dim: int, num_probs: int, max_regions: int) -> int:
    """Returns how many images with `max_regions` regions each fit into a row group of 32 MiB; at least 1."""
    per_region = 2 * feat_dim + 2 * num_probs + 16 + sum(np.dtype(d).itemsize for _, d in SCALARS)
    return max(1, ROW_GROUP_BYTES // (per_region * max(1, max_regions)))


def regions_array(images: Sequence[Arrays], feat_dim: int, num_probs: int) -> pa.ListArray:
    """Returns the `regions` column: one list per image, from its fields (N, ...); no Python object is made per region."""
    widths = {"feat": (np.float16, feat_dim), "box": (np.float32, 4), "prob": (np.float16, num_probs)}
    parts: list[pa.Array] = []
    for name, (dtype, width) in widths.items():
        flat = np.concatenate([np.zeros(0, dtype), *(one[name].astype(dtype).ravel() for one in images)])
        parts.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), width))
    for name, scalar in SCALARS:
        parts.append(
            pa.array(np.concatenate([np.zeros(0, scalar), *(one[name].astype(scalar) for one in images)]))
        )
    fields = list(region_type(feat_dim, num_probs))
    offsets = np.cumsum([0, *(len(one["obj"]) for one in images)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(parts, fields=fields))


def image_arrays(column: pa.ListArray) -> list[Arrays]:
    """Returns the fields (N, ...) of each image's regions: the inverse of `regions_array`; N = 0 for a null list.

    They are views into Arrow's memory where possible.
    """
    structs = column.flatten()
    flat: dict[str, npt.NDArray[Any]] = {}
    for field in structs.type:
        values = structs.field(field.name)
        if pa.types.is_fixed_size_list(field.type):
            width = field.type.list_size
            flat[field.name] = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        else:
            flat[field.name] = values.to_numpy(zero_copy_only=False)
    ends = np.cumsum([0, *column.value_lengths().fill_null(0).to_pylist()])
    return [{name: values[start:stop] for name, values in flat.items()} for start, stop in pairwise(ends)]


def tags_of(regions: Arrays, classes: Sequence[str], least: float) -> list[str]:
    """Returns the class names of regions with `obj_conf` >= `least`, highest `obj_conf` first; names may repeat."""
    order = np.argsort(-regions["obj_conf"], kind="stable")
    return [classes[regions["obj"][k]] for k in order if regions["obj_conf"][k] >= least]


def region_columns(regions: pa.ListArray, tags: Sequence[Sequence[str]], digest: str) -> dict[str, pa.Array]:
    """Returns the columns of `region_fields` by name. tags: from `tags_of`, per image. digest: of the detector."""
    return {
        "regions": regions,
        "region_tags": pa.array(tags, pa.list_(pa.string())),
        "regions_weights": pa.array([digest] * len(tags), pa.string()),
    }
