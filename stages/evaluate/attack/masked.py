"""Accuracy on masked words and regions when other inputs are perturbed so that the model errs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from vlpipe.stages.evaluate.masked import MaskedAccuracy

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.adversarial.perturb import Perturbations
    from vlpipe.models.interface.batch import Batch
    from vlpipe.models.interface.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class AttackedAccuracy(MaskedAccuracy):
    """Emits RESULTS as `MaskedAccuracy`, but `NAME/true`, `NAME/attacked` and `NAME/prior`.

    attacked: accuracy with a perturbation of L2 norm up to `norm` per sample in each stream of `attacked`: of its features,
    or of the word embeddings of a text. It is found for each model by `ascents` steps along the normalised gradient of the
    cross entropy of what is masked (Gan et al. 2020, VILLA), each of length 2 `norm` / `ascents`.
    """

    NAME: ClassVar[str] = "evaluate.attack.masked:AttackedAccuracy"
    VERSION: ClassVar[int] = 0
    PARTNERS: ClassVar[tuple[str, ...]] = ("true", "attacked")

    norm: Annotated[float, Field(gt=0)]
    attacked: list[str] = field(default_factory=lambda: ["regions"])
    ascents: Annotated[int, Field(ge=1)] = 3

    def preflight(self) -> list[str]:
        return [*super().preflight(), *([] if self.attacked else ["attacked: wanted a stream, got none"])]

    def seen(self, model: Any, batch: Batch, stream: str) -> Iterator[tuple[str, Outputs]]:
        import torch

        from vlpipe.models.adversarial.config import Adversarial
        from vlpipe.models.adversarial.perturb import Perturbations
        from vlpipe.models.interface.outputs import Outputs

        yield "true", Outputs(model, batch, grad=False).view(stream)
        spec = Adversarial(streams=self.attacked, lr=2 * self.norm / self.ascents, radius=self.norm)
        perturbations = Perturbations(model, spec)
        for _ in range(self.ascents):
            with torch.enable_grad(), self._added(perturbations, batch) as changed:
                total = cross_entropy(Outputs(model, changed).view(stream), stream)
                deltas = perturbations.deltas
                grads = torch.autograd.grad(total, deltas, allow_unused=True)  # of other views: None
                for delta, grad in zip(deltas, grads, strict=True):
                    delta.grad = grad
            perturbations.ascend()
        with self._added(perturbations, batch) as changed:
            yield "attacked", Outputs(model, changed, grad=False).view(stream)

    @contextmanager
    def _added(self, perturbations: Perturbations, batch: Batch) -> Iterator[Batch]:
        """Context manager that yields the batch with all streams `attacked` perturbed."""
        with ExitStack() as added:
            for name in self.attacked:
                batch = added.enter_context(perturbations.added(batch, name))
            yield batch


def cross_entropy(out: Outputs, stream: str) -> Tensor:
    """Returns the summed cross entropy of what is masked in `stream`: words, and object classes."""
    import torch
    import torch.nn.functional as F

    from vlpipe.models.interface.batch import IGNORE

    masked = out.stream(stream)
    total = torch.zeros((), device=masked.data.device)
    if "ids" in masked.target:
        at = masked.target["ids"] != IGNORE
        logits = out.model.predict_words(out.word_hidden[at])
        total = total + F.cross_entropy(logits, masked.target["ids"][at], reduction="sum")
    if "masked" in masked.target and "obj" in masked.extra and "obj" in out.model.REGION_KINDS:
        at = masked.target["masked"] & (masked.extra["obj"] >= 0)
        logits = out.model.predict_regions(out.region_hidden[at], "obj")
        total = total + F.cross_entropy(logits, masked.extra["obj"][at], reduction="sum")
    return total
