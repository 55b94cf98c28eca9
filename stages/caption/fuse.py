"""Captions that a language model makes of a row's texts, without its image.

CapsFusion (Yu et al., 2023, https://arxiv.org/abs/2310.20550) has a language model blend the alt-text, which knows names and
places, with a synthetic caption, which is well-formed and says what can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.caption.endpoint import CaptionEndpoint
from vlpipe.stages.endpoint.prompts import OF_TEXTS


@dataclass(frozen=True, kw_only=True)
class FuseEndpoint(CaptionEndpoint):
    """Appends captions as `CaptionEndpoint`, by a server that is sent the filled-in prompt alone, and no picture.

    Each prompt has `{alt_text}`, `{caption}`, the last synthetic text, or `{texts}`. All other parameters are those of
    `CaptionEndpoint`; `sent` has no effect. Rows need no image.
    """

    NAME: ClassVar[str] = "caption.fuse:FuseEndpoint"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ()
    SENDS_IMAGE: ClassVar[bool] = False

    def preflight(self) -> list[str]:
        problems = super().preflight()
        try:
            fields = [one.fields for one in self.templates.values()]
        except VlpipeError:
            return problems  # it is among them
        if not all(set(one) & set(OF_TEXTS) for one in fields):
            named = ", ".join(f"{{{name}}}" for name in OF_TEXTS)
            problems.append(
                f"a prompt has none of the fields {named}: the server sees nothing of the row but its texts"
            )
        return problems
