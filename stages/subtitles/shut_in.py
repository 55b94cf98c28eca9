"""Reads untrusted subtitle files in a child process without files or sockets, with limited memory and a deadline.

Run as a program, it is the child: a file comes in a request, so the child opens nothing.
"""

from __future__ import annotations

import encodings
import importlib
import json
import pkgutil
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.images import sandbox
from vlpipe.stages.images.sandbox import Late, ShutIn
from vlpipe.stages.subtitles.cue import Cue, Source, Word
from vlpipe.stages.subtitles.read import NotSubtitles, read_subtitles
from vlpipe.stages.subtitles.track import Merge, Track

PROGRAM = "vlpipe.stages.subtitles.shut_in"


class SubtitleReader:
    """Reads subtitle files in a child process, which is started at the first file and restarted if it dies."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        cannot = (
            "the child process that reads subtitles did not start, or died while it started; its memory limit is "
            f"{memory_mb} MB: if the machine has enough memory, increase it"
        )
        self._timeout_s = timeout_s
        self._child = ShutIn(PROGRAM, {"memory_mb": memory_mb}, cannot)

    def read(
        self,
        data: bytes,
        name: str,
        *,
        source: Source,
        lang: str | None,
        encoding: str,
        fps: float | None,
        rollup: Merge,
    ) -> Track:
        """Returns `read_subtitles` of a file. Raises RowFault as it does; bad_subtitles also if it takes too long or too
        much memory."""
        about = {
            "name": name,
            "source": source,
            "lang": lang,
            "encoding": encoding,
            "fps": fps,
            "rollup": rollup,
        }
        request = json.dumps(about).encode() + b"\n" + data
        for _ in range(2):  # a child may die for other reasons; if it dies twice, the file is the cause
            try:
                self._child.send(request, self._timeout_s)
                answer = json.loads(self._child.receive(self._timeout_s))
            except Late as error:
                self.close()
                detail = f"{name}: reading it took more than {self._timeout_s:g} s"
                raise RowFault("bad_subtitles", detail) from error
            except EOFError:
                code = self.close()
                continue
            if "why" in answer:
                kind = NotSubtitles if answer["other"] else RowFault
                raise kind(answer["why"], answer["detail"])
            return _track(answer)
        raise RowFault(
            "bad_subtitles", f"{name}: the process that read it died twice, with exit status {code}"
        )

    def close(self) -> int | None:
        """Ends the child; returns its exit status, or None if it was not running."""
        return self._child.close()


def _track(answer: dict[str, Any]) -> Track:
    source, lang = answer["source"], answer["lang"]
    found = tuple(
        Cue(start_s, end_s, text, words and tuple(Word(*word) for word in words), source, lang)
        for start_s, end_s, text, words in answer["cues"]
    )
    return Track(found, answer["counts"])


def _answer(about: dict[str, Any], data: bytes) -> dict[str, Any]:
    try:
        found = read_subtitles(data, **about)
    except RowFault as fault:
        return {"why": fault.why, "detail": fault.detail, "other": isinstance(fault, NotSubtitles)}
    except MemoryError:
        return {
            "why": "bad_subtitles",
            "detail": f"{about['name']}: reading it takes more memory than is allowed",
        }
    cues = [
        [one.start_s, one.end_s, one.text, one.words and [[w.start_s, w.end_s, w.word] for w in one.words]]
        for one in found.cues
    ]
    first = found.cues[0]
    return {"cues": cues, "source": first.source, "lang": first.lang, "counts": found.counts}


def load() -> None:
    """Imports the modules that reading needs (XML, all encodings), because the process cannot open files later."""
    importlib.import_module("xml.etree.ElementTree")
    for module in pkgutil.iter_modules(encodings.__path__):
        if module.name not in ("mbcs", "oem"):  # Windows only
            importlib.import_module(f"encodings.{module.name}")


def main() -> None:
    """Runs the child process until its input ends."""
    start = sandbox.begin()
    load()
    sandbox.ready(start["memory_mb"], num_files=3)
    for request in sandbox.requests():
        about, _, data = request.partition(b"\n")
        sandbox.answer(json.dumps(_answer(json.loads(about), data)).encode())


if __name__ == "__main__":
    main()
