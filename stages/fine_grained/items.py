"""Results of single items, as rows of RESULTS and as an artifact: what a paired bootstrap of two models draws from."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.evaluate.items import items, write_items


class Items:
    """The value of each item by metric; a metric is the mean over its items."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, tuple[str, float]]] = defaultdict(dict)

    def add(self, metric: str, item: str, row: str, value: float) -> None:
        """Adds a value. row: id of the item's row. Raises VlpipeError if the metric has a value of this item."""
        if item in self._values[metric]:
            raise VlpipeError(
                f"two results for {metric} of {item!r}: is the same test among the inputs twice?"
            )
        self._values[metric][item] = row, float(value)

    def __len__(self) -> int:
        return sum(map(len, self._values.values()))

    def results(self) -> list[dict[str, Any]]:
        """Returns rows of RESULTS: the mean and the number of items of each metric, sorted by metric."""
        return [
            {"name": metric, "value": fmean(value for _, value in of.values()), "num_rows": len(of)}
            for metric, of in sorted(self._values.items())
        ]

    def write(self, folder: str) -> None:
        """Writes the artifact (ITEMS), sorted by metric; items in the order in which they were added."""
        write_items(Path(folder), (self._table(metric) for metric in sorted(self._values)))

    def _table(self, metric: str) -> pa.Table:
        of = self._values[metric]
        places = [(item, row) for item, (row, _) in of.items()]
        return items(metric, places, np.array([value for _, value in of.values()]))
