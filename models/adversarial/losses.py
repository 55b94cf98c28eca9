"""The losses of adversarial training, of a net that has the model, its objectives and their weights.

Gan et al. 2020 (VILLA), https://arxiv.org/abs/2006.06195, equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.adversarial.perturb import Perturbations
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Term

Weighted = Mapping[str, tuple[int, float]]  # loss -> (index of its objective, weight)


def names(loss: str, stream: str) -> tuple[str, str]:
    """Returns the names of a loss on a perturbed stream, and of its KL to the predictions without perturbation."""
    return f"{loss}@{stream}", f"{loss}_kl@{stream}"


def perturbed_losses(losses: Weighted, objectives: Sequence[Objective], spec: Adversarial) -> Weighted:
    """Returns the losses that are added, as `losses`. Raises ValueError for an objective that compares samples."""
    found: dict[str, tuple[int, float]] = {}
    for name, (i, weight) in losses.items():
        if objectives[i].SCOPE != "sample":
            raise ValueError(
                f"adversarial: the loss of {type(objectives[i]).__name__} compares samples; wanted losses of one sample each"
            )
        for stream in spec.streams:
            perturbed, kl = names(name, stream)
            found |= {perturbed: (i, weight), kl: (i, weight * spec.kl)}
    return found


def perturbed_counts(counts: Mapping[str, Any], spec: Adversarial, step: int) -> dict[str, Any]:
    """Returns the counts of the losses that are added: those of the losses that they repeat."""
    streams = spec.streams_of(step)
    return {new: num for name, num in counts.items() for stream in streams for new in names(name, stream)}


def perturbed_values(
    net: Any, batch: Batch, active: Sequence[tuple[str, Objective]], perturbations: Perturbations
) -> dict[str, Term | Tensor]:
    """Returns the values of a batch without perturbations, and its losses with them; see `config.Adversarial`.

    net: `outputs` maps a batch to its `Outputs`. active: (view, objective) of the batch's task.
    """
    clean = net.outputs(batch)
    values: dict[str, Term | Tensor] = {}
    for view, objective in active:
        values |= objective(clean.view(view))
    for stream in perturbations.spec.streams_of(batch.step.number):
        with perturbations.added(batch, stream) as changed:
            out = net.outputs(changed)
            for view, objective in active:
                terms = objective(out.view(view))
                values |= {names(name, stream)[0]: terms[name] for name in objective.LOSSES}
                before, after = (objective.predicted(one.view(view)) for one in (clean, out))
                term = terms[objective.LOSSES[0]]
                if before is not None and after is not None and isinstance(term, Term):
                    divergence = binary_kl if objective.BINARY else symmetric_kl
                    each = divergence(before[0], after[0]) * before[1]
                    values[names(objective.LOSSES[0], stream)[1]] = Term(each.sum(), term.count)
    return values


def symmetric_kl(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Returns KL(p || q) + KL(q || p) in nats, (M,), of logits (M, C) of p and q."""
    p, q = clean.log_softmax(-1), perturbed.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def binary_kl(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Returns KL(p || q) + KL(q || p) in nats, (M,), of logits (M, C) of C independent answers each: their sum.

    VILLA's code has a softmax over the answers there, which are not exclusive, times their number.
    """
    return ((clean.sigmoid() - perturbed.sigmoid()) * (clean - perturbed)).sum(-1)
