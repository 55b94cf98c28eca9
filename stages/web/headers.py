"""Headers of a response: case-insensitive names, several values per name."""

from __future__ import annotations

from vlpipe.pipeline.errors import RowFault

MAX_BYTES = 1 << 16  # per response; browsers allow four times as much


class Headers:
    """Response headers, added line by line as they arrive."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}
        self._num_bytes = 0

    def add(self, line: bytes) -> None:
        """Adds a line `Name: value`. Raises RowFault (bad_response) if all lines exceed MAX_BYTES."""
        self._num_bytes += len(line)
        if self._num_bytes > MAX_BYTES:
            raise RowFault("bad_response", f"more than {MAX_BYTES} bytes of headers")
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if colon:
            self._values.setdefault(name.strip().lower(), []).append(value.strip())

    def getall(self, name: str, default: list[str]) -> list[str]:
        """Returns all values of a header, or `default` if it is missing."""
        return self._values.get(name.lower(), default)

    def get(self, name: str, default: str = "") -> str:
        """Returns the first value of a header, or `default` if it is missing."""
        return self._values.get(name.lower(), [default])[0]

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values
