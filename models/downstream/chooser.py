"""One of several texts as the answer: visual commonsense reasoning, multiple-choice questions about videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlpipe.models.downstream.joint import AnswerHead, JointModel
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs


class JointChooser(JointModel):
    """Scores (B, K) of K texts, each read with the same image: a question and one of its answers. Softmax over them.

    The stream `choices` has ids (B, K, L), where a text is a question and an answer as a pair of segments. Zellers et al.
    2019 (VCR), https://arxiv.org/abs/1811.10830; Lei et al. 2018 (TVQA), https://arxiv.org/abs/1809.01696.
    """

    def __init__(
        self, *, base: Mapping[str, Any], tokens: Mapping[str, int] | None = None, blind: bool = False
    ) -> None:
        super().__init__(base=base, tokens=tokens, blind=blind)
        self.head = AnswerHead(self.joint_width, 2 * self.joint_width, 1)

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        text = specs.pop("text")
        specs["choices"] = {"use": "choices:Choices", "max_positions": text.get("max_positions")}
        return specs

    def choice_scores(self, out: Outputs) -> Tensor:
        """Scores (B, K); -inf for texts that a row does not have."""
        choices = out.stream("choices")
        assert choices.mask is not None
        num, several = choices.data.shape[:2]
        is_there = choices.mask.any(-1)
        mask = choices.mask.clone()
        mask[:, :, 0] = (
            True  # a text that is not there keeps one position, so that attention has something to see
        )
        segment = {"segment": choices.extra["segment"].flatten(0, 1)}
        text = Stream(choices.data.flatten(0, 1), mask.flatten(0, 1), segment)
        images = {name: out.stream(name) for name in self.seen}
        vectors = self.joint({"text": text, **images}, out.batch.same, texts_per_image=several)
        scores: Tensor = self.head(vectors).view(num, several).float()
        return scores.masked_fill(~is_there, float("-inf"))
