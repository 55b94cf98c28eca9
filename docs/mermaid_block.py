"""The directive `mermaid` as plain text: diagrams are drawn by the code host; the site loads no script from elsewhere."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive


class Mermaid(Directive):
    """Returns the source of the diagram as a literal block."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[Any]:
        return [nodes.literal_block("", "\n".join(self.content))]
