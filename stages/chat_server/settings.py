"""How the small server behaves, and what it does wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What may go wrong. Those in ONCE go wrong at the first request of its kind alone, unless `always`.
ONCE = ("429", "500", "hang", "cut", "wrong_json", "html", "endless", "huge", "redirect")
STEADY = (
    "refusal",
    "length",
    "empty",
    "loop",
    "control",
    "foreign",
    "bad_request",
    "bad_image",
    "echo",
    "deep",
    "no_logprobs",
)
FAULTS = (*ONCE, *STEADY)
DIED = 7


@dataclass(frozen=True, kw_only=True)
class Settings:
    """latency_s: from the time a request gets a slot to its answer. slots: requests worked on at once; others wait, or get
    429 (too_many). rate: requests per second that are let in, beyond `burst` of them 429 with Retry-After; 0 for no limit.
    faults: kind -> share of all requests, chosen by a hash of the request; always: also when the same request comes again.
    key: the only Bearer token that is let in. blind: requests are not read, which is faster. die_after: answers after which
    the process ends with exit code DIED; 0 for never.
    """

    latency_s: float = 0.05
    slots: int = 64
    too_many: Literal["queue", "429"] = "queue"
    rate: float = 0.0
    burst: int = 10
    retry_after: str = "1"
    faults: Mapping[str, float] = field(default_factory=dict)
    always: bool = False
    key: str = ""
    blind: bool = False
    die_after: int = 0

    def fault_of(self, request: str) -> str:
        """Returns the fault of a request, given by its digest; empty for none."""
        draw = int.from_bytes(hashlib.blake2b(request.encode(), digest_size=8).digest(), "big") / 2**64
        for kind, share in self.faults.items():
            draw -= share
            if draw < 0:
                return kind
        return ""
