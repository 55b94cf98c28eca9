"""The connection to Ray: a cluster started on this machine, or an existing one, with or without a token."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]  # compiled

from vlpipe.pipeline.engine.locking.signals import Interrupted
from vlpipe.pipeline.engine.on_ray.scheduler import KINDS, ZERO
from vlpipe.pipeline.engine.worker.node_probe import DRIVER_FOLDER
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.steps.step import KIND

FORMS = "HOST:PORT of a cluster's head, [IPv6]:PORT, ray://HOST:PORT, or auto"
CLIENT = "ray://"
ANSWER_S = 5.0  # timeout for a cluster to answer, in seconds; Ray itself would try for minutes
AUTH = "RAY_AUTH_MODE"
USERS_AUTH = os.environ.get(AUTH)  # Ray sets the variable itself when it starts a cluster
# Hides GPUs from workers whose task requests none; by default Ray lets them see those of the node.
WORKER_ENV = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


class Cluster:
    """A connection to Ray. env: variables for all workers of the run. address: None starts Ray on this machine."""

    def __init__(self, env: Mapping[str, str], address: str | None) -> None:
        self.address = address
        self._env = {**env, **WORKER_ENV}
        self._asked: list[dict[str, float]] = []

    def connect(self, runtime_env: Mapping[str, Any] | None = None) -> None:
        """Connects to Ray. Raises VlpipeError if no cluster answers, or if it requires a token that is not available."""
        os.environ.update(WORKER_ENV)
        if self.address is None:
            self._init("local", None)
            return
        env = {**(runtime_env or {})}
        env["env_vars"] = {**self._env, **env.get("env_vars", {})}
        if in_job():  # workers run in a copy of this folder, which the job has brought
            env["env_vars"][DRIVER_FOLDER] = os.getcwd()
        self._init(checked_address(self.address), env)

    def _init(self, address: str, runtime_env: dict[str, Any] | None) -> None:
        """Calls `ray.init`, then restores the SIGTERM handler, which Ray replaces."""
        is_client = address.startswith(CLIENT)
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if in_main else None
        more = {} if is_client else {"include_dashboard": False if address == "local" else None}
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime_env,
                **more,
            )
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise VlpipeError(f"no Ray cluster answers at {self.address}: {error}") from error
        except ImportError as error:
            raise VlpipeError(f"--address {self.address}: {error}; pip install 'ray[client]'") from error
        except SystemExit as asked:  # raised by Ray's SIGTERM handler while it starts
            raise Interrupted(signal.SIGTERM) from asked
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    def disconnect(self) -> None:
        if self._asked:
            self.ask_for([])
        ray.shutdown()

    @property
    def is_client(self) -> bool:
        return bool(self.address and self.address.startswith(CLIENT))

    def driver_ip(self) -> str:
        """Returns the IP address at which workers on other nodes reach this process."""
        if self.address is None:
            return "127.0.0.1"
        if not self.is_client:
            return str(ray.util.get_node_ip_address())
        host, port = _host_and_port(self.address.removeprefix(CLIENT))
        with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
            return str(connection.getsockname()[0])

    def on_node(self, node: str) -> Any:
        """Returns Ray's scheduling strategy that pins a task or actor to this node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node, soft=False)

    @property
    def grows(self) -> bool:
        """True if an autoscaler may add nodes."""
        return bool(self._node_types())

    def _node_types(self) -> list[dict[str, float]]:
        """Returns resources of the nodes an autoscaler may add, one entry per type of node; empty without an autoscaler."""
        if self.address is None or self.is_client:
            return []
        config = ray._private.state.state.get_cluster_config()
        groups = config.node_group_configs if config else ()
        return [dict(group.resources) for group in groups if group.max_count]

    def may_grow_to(self, need: Mapping[str, float]) -> bool:
        """Returns True if an autoscaler may add a node with these resources."""
        asked = _bundle(need)
        return any(all(n <= node.get(k, 0) for k, n in asked.items()) for node in self._node_types())

    def ask_for(self, needs: Sequence[Mapping[str, float]]) -> None:
        """Requests resources that no current node has from the autoscaler, if there is one.

        Without this it would not add nodes for them: it sees only what is queued inside Ray, not what waits in the driver.
        """
        bundles = [_bundle(need) for need in needs]
        if bundles == self._asked or not (self._asked or self.grows):
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
        self._asked = bundles

    def name_of(self, node: str) -> str:
        """Returns the address of a node, for messages; its id if the node is unknown."""
        found = [n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == node]
        return str(found[0]) if found else node

    def nodes_text(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """Returns a text such as `no node has that: the cluster has 2 x (2 CPU, 4.0 GB of memory)`."""
        kinds = Counter(
            ", ".join(f"{node.get(k, 0):g} {k}" for k in ("CPU", "GPU") if k == "CPU" or node.get(k))
            + f", {node.get('memory', 0) / 2**30:.1f} GB of memory"
            + "".join(f", {amount_text(n, k)}" for k, n in node.items() if k not in (*KINDS, ZERO))
            for node in nodes
        )
        have = "; ".join(f"{num} x ({text})" if num > 1 else text for text, num in kinds.items())
        where = "the cluster has" if self.address else "this machine has"
        more = ", and its autoscaler adds no such node" if self.grows else ""
        return f"no node has that: {where} {have or 'no node'}{more}"


def in_job() -> bool:
    """Returns True if this process is the driver of a Ray job, whose code and folder every node gets."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def node_resources() -> dict[str, dict[str, float]]:
    """Returns node id -> total resources, for nodes that are alive."""
    return {n["NodeID"]: dict(n["Resources"]) for n in ray.nodes() if n["Alive"]}


def _bundle(need: Mapping[str, float]) -> dict[str, float]:
    return {kind: n for kind, n in need.items() if n and kind != ZERO}


def amount_text(amount: float, kind: str) -> str:
    """Returns an amount of a resource for messages: `2 CPU`; a kind of accelerator without amount: `A100`."""
    return kind.removeprefix(KIND) if kind.startswith(KIND) else f"{amount:g} {kind}"


def checked_address(address: str) -> str:
    """Returns the address in Ray's form, after a check that a server answers there and whether it requires a token."""
    found = _auto_address() if address == "auto" else address
    host, port = _host_and_port(found.removeprefix(CLIENT))
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        raise VlpipeError(
            f"no Ray cluster answers at {found}: {error.strerror or error}; start one with `ray start --head`, or give "
            "the address of one that runs"
        ) from error
    if not found.startswith(CLIENT):
        _configure_token(found)
    return found


def _auto_address() -> str:
    """Returns the address in RAY_ADDRESS, or that of the cluster started by `ray start` on this machine."""
    from ray._private.services import canonicalize_bootstrap_address

    from_env = os.environ.get("RAY_ADDRESS", "")
    if from_env.startswith(CLIENT):
        return from_env
    found = canonicalize_bootstrap_address("auto")
    if not found:
        raise VlpipeError(
            "--address auto: RAY_ADDRESS is not set, and `ray start` has started no cluster on this machine; start one, "
            "or give --address HOST:PORT"
        )
    return str(found)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdigit() or (":" in host and not bracketed):
        raise VlpipeError(f"--address: wanted {FORMS}, got {address!r}")
    return host.strip("[]"), int(port)


def _configure_token(address: str) -> None:
    """Configures whether Ray sends a token. Raises VlpipeError if the cluster requires one that is not available.

    Ray sends a token only if configured to, and a cluster without tokens misreads a request that has one. So this tries
    without, then with this machine's token if the cluster requires one. A RAY_AUTH_MODE set by the user is respected.
    """
    if USERS_AUTH is None:
        os.environ.pop(AUTH, None)
        Config.initialize("")
    if _accepts_connection(address):
        return
    if USERS_AUTH is None and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ[AUTH] = "token"  # without a token on this machine, Ray would exit this process
        Config.initialize("")
        if _accepts_connection(address):
            return
    raise VlpipeError(
        f"the Ray cluster at {address} requires a token: put its own (`ray get-auth-token` on the head) into "
        f"RAY_AUTH_TOKEN or ~/.ray/auth_token" + (f", and set {AUTH}=token" if USERS_AUTH else "")
    )


def _accepts_connection(address: str) -> bool:
    try:
        with _silenced_stderr():
            GcsClient(address=address).internal_kv_get(b"vlpipe", None, ANSWER_S)
    except ray.exceptions.AuthenticationError:
        return False
    except ray.exceptions.RpcError as error:
        raise VlpipeError(
            f"the server at {address} is not the head node of a Ray cluster: {error}"
        ) from error
    return True


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Silences standard error: what Ray's C++ code writes there is also in the exception."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
