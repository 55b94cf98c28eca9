"""Mends of the engine, each of which can be taken out to see that the property test finds what it mended."""

from __future__ import annotations

from collections.abc import Callable

MUTANTS: dict[str, Callable[[], None]] = {}
