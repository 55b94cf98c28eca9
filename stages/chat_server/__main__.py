"""python -m vlpipe.stages.chat_server: runs the small server until it is ended."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack
from pathlib import Path

from vlpipe.stages.chat_server.server import ChatServer, any_caption
from vlpipe.stages.chat_server.settings import FAULTS, Settings
from vlpipe.stages.chat_server.world_captions import WorldCaptions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vlpipe.stages.chat_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--too-many", choices=["queue", "429"], default="queue")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; others get 429")
    parser.add_argument("--burst", type=int, default=10)
    parser.add_argument("--key", default="", help="the only Bearer token that is let in")
    parser.add_argument("--blind", action="store_true", help="do not read requests")
    parser.add_argument("--always", action="store_true", help="faults also when a request comes again")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND=SHARE", help=", ".join(FAULTS))
    parser.add_argument("--world", help="root with a demo world, whose images get right captions, mostly")
    parser.add_argument("--wrong", type=float, default=0.2, help="share of wrong captions of a demo world")
    parser.add_argument("--die-after", type=int, default=0, help="answers after which the process ends")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    faults = {kind: float(share) for kind, _, share in (one.partition("=") for one in args.fault)}
    if unknown := sorted(set(faults) - set(FAULTS)):
        parser.error(f"there is no fault {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    settings = Settings(
        latency_s=args.latency,
        slots=args.slots,
        too_many=args.too_many,
        rate=args.rate,
        burst=args.burst,
        faults=faults,
        always=args.always,
        key=args.key,
        blind=args.blind,
        die_after=args.die_after,
    )
    captioner = WorldCaptions(args.world, args.wrong) if args.world else any_caption
    with ExitStack() as stack:
        log = stack.enter_context(args.log.open("ab", buffering=0)) if args.log else None
        asyncio.run(_serve(ChatServer(settings, captioner, log), args.port))


async def _serve(server: ChatServer, port: int) -> None:
    print(f"listening on http://127.0.0.1:{await server.start(port)}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
