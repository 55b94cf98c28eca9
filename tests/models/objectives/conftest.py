from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.teachers import Ema


@pytest.fixture(scope="session")
def values_of() -> Callable[..., dict[str, Tensor]]:
    """values_of(objective, model, batch, ema=None): its losses and diagnostics as means. Without `ema`, the teacher is a
    copy of the model as it is now.
    """

    def compute(objective: Objective, model: Any, batch: Batch, ema: Ema | None = None) -> dict[str, Tensor]:
        if ema is None:
            ema = Ema()
            ema.bind(model)
        found = objective(Outputs(model, batch, {"ema": ema.copy}))
        return {
            name: value.total / max(1, value.count) if isinstance(value, Term) else value
            for name, value in found.items()
        }

    return compute
