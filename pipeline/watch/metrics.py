"""Metrics of a run for Prometheus: `vlpipe run --metrics PORT` serves them at http://127.0.0.1:PORT/metrics.

vlpipe_rows_in_total, vlpipe_rows_out_total, vlpipe_shards_done_total, vlpipe_busy_seconds_total{step};
vlpipe_rejected_rows_total{step, kind, why}; vlpipe_shards{step}: number of shards a step will have, if it is known;
vlpipe_step_running{step}: 1 or 0; vlpipe_alarms{step}. Text format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.storage.store import Store

HELP = {
    "vlpipe_rows_in_total": "Input rows of finished shards of this run.",
    "vlpipe_rows_out_total": "Output rows of finished shards of this run.",
    "vlpipe_shards_done_total": "Finished shards of this run, those reused included.",
    "vlpipe_busy_seconds_total": "Seconds of work in shards that this run computed.",
    "vlpipe_rejected_rows_total": "Rejected rows of finished shards by reason.",
    "vlpipe_shards": "Number of shards a step will have.",
    "vlpipe_step_running": "1 while a step runs.",
    "vlpipe_alarms": "Number of alarms of a finished step.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts what a run does, and serves it. Use as a context manager and pass `watcher` to the runner."""

    def __init__(self, store: Store, where: str) -> None:
        """where: PORT, or HOST:PORT; without a host only this machine can read. Port 0: a free one, see `port`."""
        self._store = store
        host, _, port = where.rpartition(":")
        if not port.isdigit() or int(port) > 65_535:
            raise VlpipeError(f"--metrics: wanted PORT or HOST:PORT, got {where!r}")
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._lock = threading.Lock()
        self._address = (host or "127.0.0.1", int(port))
        self._server: ThreadingHTTPServer | None = None
        self.watcher = Watcher(started=self._started, shard=self._shard, finished=self._finished)

    def __enter__(self) -> Metrics:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = metrics.text().encode()
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.end_headers()
                self.wfile.write(body if self.path == "/metrics" else b"see /metrics\n")

            def log_message(self, *_: object) -> None:
                """Requests are not logged."""

        try:
            self._server = ThreadingHTTPServer(self._address, Handler)
        except OSError as error:
            raise VlpipeError(
                f"--metrics: cannot listen on {self._address[0]}:{self._address[1]}: {error}"
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    def _started(self, one: PlannedStep, total: int | None) -> None:
        with self._lock:
            self._values["vlpipe_step_running"][("step", one.name),] = 1
            if total is not None:
                self._values["vlpipe_shards"][("step", one.name),] = total

    def _shard(self, one: PlannedStep, receipt: Receipt, reused: bool) -> None:
        step: Labels = (("step", one.name),)
        with self._lock:
            self._values["vlpipe_rows_in_total"][step] += receipt.rows_in
            self._values["vlpipe_rows_out_total"][step] += receipt.shard.num_rows
            self._values["vlpipe_shards_done_total"][step] += 1
            self._values["vlpipe_busy_seconds_total"][step] += 0 if reused else receipt.run.get("seconds", 0)
            for code, num in receipt.rejects.items():
                kind, _, why = code.partition(":")
                labels = (*step, ("kind", kind), ("why", why))
                self._values["vlpipe_rejected_rows_total"][labels] += num

    def _finished(self, one: PlannedStep) -> None:
        num_alarms = len(alarms(one, self._store))
        with self._lock:
            self._values["vlpipe_step_running"][("step", one.name),] = 0
            self._values["vlpipe_alarms"][("step", one.name),] = num_alarms

    def text(self) -> str:
        """Returns all metrics in Prometheus's text format."""
        with self._lock:
            values = {name: dict(found) for name, found in self._values.items()}
        lines = []
        for name, about in HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            for labels, value in sorted(values.get(name, {}).items()):
                shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                lines.append(f"{name}{{{shown}}} {value:.12g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
