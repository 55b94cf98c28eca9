"""Who starts next, by simulated time: pools beside the tasks that feed them, gather steps at once, no hang, no reload."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from vlpipe.pipeline.engine.on_ray.scheduler import Allocation, ResourceRequest, Room, needed


@dataclass
class Step:
    """`seconds` per shard; `load` of each new actor. What is fed by nothing has `shards` from the start."""

    name: str
    above: tuple[str, ...] = ()
    seconds: float = 1.0
    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0
    actors: int = 0
    gather: bool = False
    workers: int = 1
    load: float = 0.0
    shards: int = 0


@dataclass
class Simulated:
    """What came of a run: when each unit began and ended, how often a pool loaded, the most units at once."""

    spans: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    loads: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: float = 0.0

    def first(self, name: str) -> float:
        """When the first unit of a step ended."""
        return min(end for _, end in self.spans[name])


def ask_of(step: Step, steps: Mapping[str, Step]) -> ResourceRequest:
    above: set[str] = set()
    todo = list(step.above)
    while todo:
        name = todo.pop()
        above.add(name)
        todo += steps[name].above
    is_task = not (step.gather or step.actors)
    need = needed(step.cpus, step.gpus, step.memory, is_task=is_task)
    return ResourceRequest(step.name, need, step.gather, step.workers, step.actors, frozenset(above))


class Simulation:
    """As the runner and Ray do it: in order of urgency, an actor works on one shard after the other."""

    def __init__(self, nodes: Mapping[str, Mapping[str, float]], *steps: Step) -> None:
        self.room, self.steps = Room(), {step.name: step for step in steps}
        for node, total in nodes.items():
            self.room.join(node, total)
        self.asks = {step.name: ask_of(step, self.steps) for step in steps}
        for step in steps:
            assert self.room.holds(self.asks[step.name]), step
        self.todo = {step.name: list(range(step.shards)) for step in steps}
        self.left = {name: self.num_shards(name) for name in self.steps}
        self.opened: set[str] = set()
        self.running: dict[str, int] = defaultdict(int)
        self.busy_until: dict[Allocation, float] = {}
        self.node_free: dict[str, list[float]] = {}
        self.now, self.found = 0.0, Simulated()
        self.ends: list[tuple[float, int, str, Allocation]] = []
        self.order = itertools.count()

    def num_shards(self, name: str) -> int:
        step = self.steps[name]
        if step.gather:
            return 1
        return step.shards or sum(self.num_shards(above) for above in step.above)

    def run(self) -> Simulated:
        while any(self.left.values()):
            self._open()
            self._start()
            assert self.ends, f"nothing runs, {dict(self.left)} are left"
            self.now, _, name, held = heapq.heappop(self.ends)
            self._ended(name, held)
        self.found.seconds = self.now
        return self.found

    def _open(self) -> None:
        """Map steps open with what is above them, as its count is known; gather steps when it is done."""
        for name, step in self.steps.items():
            done = all(self.left[above] == 0 for above in step.above)
            gathers_left = any(self.steps[above].gather and self.left[above] for above in step.above)
            closed = any(above not in self.opened for above in step.above)
            if name in self.opened or (step.gather and not done) or gathers_left or closed:
                continue
            self.opened.add(name)
            self.room.expect(self.asks[name])
            if step.gather:
                self.todo[name].append(0)
            elif not step.shards:  # what gather steps above it gave
                self.todo[name] += [0] * sum(self.num_shards(a) for a in step.above if self.steps[a].gather)

    def _start(self) -> None:
        while True:
            ready = [name for name in reversed(self.steps) if name in self.opened and self.todo[name]]
            wanting = sorted(ready, key=lambda name: not self.steps[name].gather)
            start, _ = self.room.pick([self.asks[name] for name in wanting])
            if start is None:
                return
            name = start.ask.step
            self.todo[name].pop()
            self.running[name] += 1
            self.found.most[name] = max(self.found.most[name], self.running[name])
            self._schedule(self.steps[name], start.held, is_new=start.is_new)

    def _schedule(self, step: Step, held: Allocation, *, is_new: bool) -> None:
        began = self.now
        if step.actors:
            self.found.loads[step.name] += is_new
            began = max(self.busy_until.get(held, self.now + step.load), self.now)
        elif self.room.free()[held.node]["CPU"] < 0:  # queued in Ray, until something there ends
            began = min((end for end, _, _, other in self.ends if held.node in other.nodes), default=self.now)
        self.busy_until[held] = began + step.seconds
        self.found.spans[step.name].append((began, began + step.seconds))
        heapq.heappush(self.ends, (began + step.seconds, next(self.order), step.name, held))

    def _ended(self, name: str, held: Allocation) -> None:
        self.running[name] -= 1
        self.left[name] -= 1
        if self.steps[name].actors:
            held.busy -= 1
        else:
            self.room.end(held)
        for below, step in self.steps.items():
            if name in step.above and not step.gather and not self.steps[name].gather:
                self.todo[below].append(0)
        if self.left[name] == 0:
            self.room.release(name)


ONE_NODE = {"a": {"CPU": 2}}


def simulate(nodes: Mapping[str, Mapping[str, float]], *steps: Step) -> Simulated:
    return Simulation(nodes, *steps).run()


def fetch_then_caption(shards: int, seconds: float, **caption: float) -> tuple[Step, Step]:
    return (
        Step("fetch", shards=shards, seconds=seconds),
        Step("caption", ("fetch",), seconds=0.5, actors=1, **caption),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("nodes", "shards", "seconds", "caption"),
    [
        ({"a": {"CPU": 8}}, 64, 4.0, {}),
        ({"a": {"CPU": 4, "GPU": 1}}, 40, 2.0, {"gpus": 1}),
        ({"a": {"CPU": 4, "GPU": 1}}, 40, 2.0, {"gpus": 1, "cpus": 0}),
        ({"a": {"CPU": 2}}, 24, 1.0, {}),
        ({"a": {"CPU": 2}}, 24, 1.0, {"load": 10.0}),
        ({"a": {"CPU": 2}, "b": {"CPU": 2}}, 40, 2.0, {"cpus": 2}),
        ({"a": {"CPU": 4}}, 40, 2.0, {"cpus": 2}),
    ],
)
def test_a_stage_with_weights_works_beside_the_tasks_that_feed_it(
    nodes: Mapping[str, Mapping[str, float]], shards: int, seconds: float, caption: dict[str, float]
) -> None:
    """Its first shard is done three rounds of tasks after the start, not when all the inputs are there."""
    found = simulate(nodes, *fetch_then_caption(shards, seconds, **caption))
    load, held = caption.get("load", 0.0), caption.get("cpus", 1.0)
    assert found.first("caption") <= 3 * seconds + load + 0.5
    assert found.loads["caption"] == 1
    cpus = sum(node["CPU"] for node in nodes.values())
    assert found.seconds <= 3 * seconds + load + shards * max(seconds / (cpus - held), 0.5)


def test_a_slow_stage_with_weights_takes_all_it_needs() -> None:
    """The tasks above it are done early; its actor is never idle from its first shard on."""
    found = simulate(
        ONE_NODE,
        Step("a", shards=64, seconds=0.05),
        Step("b", ("a",), seconds=0.05, actors=1),
    )
    assert found.seconds <= 1.15 * 65 * 0.05


def test_a_gather_step_starts_when_it_is_ready() -> None:
    """`g` waits for `short` only; the other branch goes on for long."""
    found = simulate(
        ONE_NODE,
        Step("short", shards=4),
        Step("g", ("short",), gather=True),
        Step("long", shards=40),
        Step("end", ("long",)),
    )
    ready = max(end for _, end in found.spans["short"])
    assert found.spans["g"][0][0] <= ready + 2.0


def test_training_starts_when_the_cpus_it_needs_are_let_go() -> None:
    """Pools of the other branch hold both CPUs; they end what they have in flight, and load once more afterwards."""
    found = simulate(
        ONE_NODE,
        Step("short", shards=2),
        Step("train", ("short",), gather=True, workers=2, seconds=5.0),
        Step("x", shards=40, actors=1, load=3.0),
        Step("y", ("x",), actors=1, load=3.0),
    )
    ready = max(end for _, end in found.spans["short"])
    assert found.spans["train"][0][0] <= ready + 10.0
    assert found.loads["x"] <= 2
    assert found.loads["y"] <= 2


def test_tasks_end_no_pool_and_a_pool_that_waits_for_its_feeder_stays() -> None:
    """An actor that holds only the GPU, and one that holds a CPU, while three task steps come and go beside them."""
    found = simulate(
        {"a": {"CPU": 3, "GPU": 1}},
        Step("a", shards=16, seconds=4.0),
        Step("gpu", ("a",), actors=1, gpus=1, cpus=0, load=20.0),
        Step("cpu", ("gpu",), actors=1, load=20.0),
        Step("wide", ("cpu",), cpus=2),
    )
    assert found.loads == {"gpu": 1, "cpu": 1}


def test_two_pools_on_one_gpu_change_over_when_one_is_idle() -> None:
    """Fetching is slow: both work while it goes on, and each change pays for itself with a backlog."""
    found = simulate(
        {"a": {"CPU": 4, "GPU": 1}},
        Step("fetch", shards=60, seconds=10.0),
        Step("caption", ("fetch",), actors=1, gpus=1, load=30.0),
        Step("filter", ("caption",), actors=1, gpus=1, load=30.0),
    )
    assert found.first("filter") < 0.5 * found.seconds
    assert sum(found.loads.values()) <= 12
    assert found.seconds < 1.7 * 60 * 10.0 / 3


def test_two_pools_on_one_gpu_load_once_each_when_nothing_is_slow() -> None:
    found = simulate(
        {"a": {"CPU": 4, "GPU": 1}},
        Step("caption", shards=60, actors=1, gpus=1, load=30.0),
        Step("filter", ("caption",), actors=1, gpus=1, load=30.0),
    )
    assert found.loads == {"caption": 1, "filter": 1}


def test_a_pool_leaves_room_for_the_tasks_that_feed_it() -> None:
    """Eight actors are asked for on four CPUs: three work, and a task feeds them."""
    found = simulate(
        {"a": {"CPU": 4}}, Step("fetch", shards=40, seconds=0.2), Step("caption", ("fetch",), actors=8)
    )
    assert found.loads["caption"] == 4  # the last one when all is fetched
    assert found.first("caption") < 2.0
    assert found.most["fetch"] >= 1


@pytest.mark.slow
def test_no_mix_of_pools_and_tasks_hangs() -> None:
    """Chains and branches on one or two CPUs; widths that do not fit beside each other, a gather step at the end."""
    widths, pools = itertools.product([1, 2], repeat=4), itertools.product([0, 1, 2], repeat=4)
    mixes = list(itertools.product([1, 2], widths, pools))
    for cpus, wide, actors in mixes[::5]:
        a, b, c, d = (min(w, cpus) for w in wide)
        steps = [
            Step("a", shards=6, cpus=a, actors=actors[0]),
            Step("b", ("a",), cpus=b, actors=actors[1]),
            Step("c", shards=4, cpus=c, actors=actors[2]),
            Step("d", ("c",), cpus=d, actors=actors[3]),
            Step("both", ("b", "d"), actors=actors[3]),
            Step("end", ("both", "a"), gather=True, workers=cpus),
        ]
        found = simulate({"n": {"CPU": cpus}}, *steps)
        ideal = (6 * (a + b) + 4 * (c + d) + 10 + cpus) / cpus
        assert found.seconds <= 2 * ideal + 4, (cpus, wide, actors)
        assert all(found.loads[s.name] <= 3 * s.actors for s in steps if s.actors), (cpus, wide, actors)


def test_tasks_that_ask_for_no_cpu_are_bounded() -> None:
    found = simulate({"a": {"CPU": 2}, "b": {"CPU": 4}}, Step("fetch", shards=1000, cpus=0))
    assert found.most["fetch"] == 6
    found = simulate(ONE_NODE, Step("fetch", shards=1000, cpus=0.001))
    assert found.most["fetch"] <= 21


def test_memory_bounds_what_runs_at_once() -> None:
    found = simulate({"a": {"CPU": 8, "memory": 4.0}}, Step("big", shards=8, memory=1.5))
    assert found.most["big"] == 2


def test_what_no_single_node_holds_does_not_fit() -> None:
    room = Room()
    room.join("a", {"CPU": 2, "memory": 2.0})
    room.join("b", {"CPU": 2, "GPU": 1})
    for cpus, gpus, memory, workers, fits in [
        (2, 0, 0, 1, True),
        (3, 0, 0, 1, False),
        (2, 0, 0, 2, True),
        (2, 0, 0, 3, False),
        (2, 1, 0, 1, True),
        (1, 1, 1, 1, False),  # the GPU is on the one, the memory on the other
    ]:
        need = needed(cpus, gpus, memory, is_task=False)
        assert room.holds(ResourceRequest("x", need, is_gather=True, workers=workers)) == fits, (
            cpus,
            gpus,
            memory,
            workers,
        )


def test_a_node_that_joins_is_used_and_one_that_leaves_is_not() -> None:
    room, ask = Room(), ResourceRequest("a", needed(1, 0, 0, is_task=True))
    room.expect(ask)
    room.join("a", {"CPU": 1})

    def fill() -> list[str]:
        starts = iter(lambda: room.pick([ask])[0], None)
        return [start.held.node for start in starts]

    assert fill() == ["a", "a"]  # one of them waits there
    room.join("b", {"CPU": 2})
    assert fill() == ["b", "b"]
    room.leave("a")
    assert fill() == ["b"]


def test_gpu_nodes_are_kept_for_those_who_want_them() -> None:
    room = Room()
    room.join("gpu", {"CPU": 8, "GPU": 1})
    room.join("cpu", {"CPU": 2})
    ask = ResourceRequest("a", needed(1, 0, 0, is_task=True))
    starts = [room.pick([ask])[0] for _ in range(3)]
    assert [start.held.node for start in starts if start] == ["cpu", "cpu", "gpu"]


def test_a_pool_in_which_an_actor_died_has_one_shard_in_flight() -> None:
    room, ask = Room(), ResourceRequest("a", needed(1, 0, 0, is_task=False), actors=1)
    room.join("n", {"CPU": 2})

    def in_flight() -> int:
        return sum(1 for _ in iter(lambda: room.pick([ask])[0], None))

    assert in_flight() == 2
    room.end(room.actors[0])
    room.careful.add("a")
    assert in_flight() == 1


def test_a_training_takes_the_workers_that_the_nodes_hold_but_not_fewer_than_its_least() -> None:
    """On all nodes all; it waits for those that are busy, not for those that are gone."""
    room, need = Room(), needed(1.0, 0.0, 0.0, is_task=False)
    ask = ResourceRequest("train", need, is_gather=True, workers=4, least=2)
    other = ResourceRequest("other", needed(2.0, 0.0, 0.0, is_task=False), is_gather=True)
    for node in "ab":
        room.join(node, {"CPU": 2})
    first, _ = room.pick([other])
    assert first is not None
    assert room.pick([ask])[0] is None
    room.end(first.held)
    began, _ = room.pick([ask])
    assert began is not None
    assert sorted(began.held.nodes) == ["a", "a", "b", "b"]
    room.end(began.held)
    room.leave("b")
    again, _ = room.pick([ask])
    assert again is not None
    assert again.held.nodes == ("a", "a")
    room.end(again.held)
    room.leave("a")
    room.join("c", {"CPU": 1})
    assert not room.holds(ask)
    assert room.pick([ask])[0] is None
