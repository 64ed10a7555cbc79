"""Nodes of a Ray cluster on this machine, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STORE_BYTES = 80 << 20  # the least that Ray takes is 75 MiB
# Of machines of their own, behind a bridge; not that of a run that was killed.
_NETWORK = f"10.77.{os.getpid() % 256}"
# so that a node that does not answer is given up within some seconds
_HEALTH = {
    "health_check_initial_delay_ms": 5000,
    "health_check_period_ms": 2000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}


class RayNodes:
    """A head that does no work, which this process may join, and nodes that do."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_system_config": _HEALTH,
            },
        )
        self._blind: list[subprocess.Popen[bytes]] = []
        self._networks: list[str] = []

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self, num_cpus: int = 1) -> Any:
        """Starts a node."""
        return self._cluster.add_node(
            num_cpus=num_cpus, object_store_memory=_STORE_BYTES
        )

    def add_blind(self, *hidden: Path) -> None:
        """Starts a node that has folders of its own in the place of these.

        Raises:
            PermissionError: this user may not make a mount namespace.
        """
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
        if probe.returncode:
            raise PermissionError(probe.stderr.decode())
        self._start_blind(hidden)

    def add_machine(self, *hidden: Path) -> str:
        """Starts a node as `add_blind`, with a network of its own; returns its name.

        Raises:
            PermissionError: this user may not make networks.
        """
        number = len(self._networks)
        name, bridge = f"sfm{os.getpid()}n{number}", f"sfm{os.getpid()}"
        try:
            if not number:
                _ip("link", "add", bridge, "type", "bridge")
                _ip("addr", "add", f"{_NETWORK}.1/24", "dev", bridge)
                _ip("link", "set", bridge, "up")
            _ip("netns", "add", name)
            self._networks.append(name)
            _ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", name)
            _ip("link", "set", name, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{_NETWORK}.{number + 2}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", f"{_NETWORK}.1")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            if "File exists" in said:  # of a cluster before, which is no lack of rights
                raise
            raise PermissionError(said) from error
        own = Path(self._cluster.head_node.get_temp_dir_path())  # of Ray
        self._start_blind(
            (*hidden, own),
            *("ip", "netns", "exec", name),
            options=f"--node-ip-address={_NETWORK}.{number + 2}",
        )
        return name

    def machine_of(self, pid: int) -> str:
        """The machine on which a process runs."""
        return _ip("netns", "identify", str(pid)).strip()

    def cut_off(self, name: str) -> None:
        """Pulls the network cable of a machine, which goes on by itself."""
        _ip("link", "set", name, "down")

    def _start_blind(
        self, hidden: Sequence[Path], *inside: str, options: str = ""
    ) -> None:
        mounts = "".join(f"mount -t tmpfs none '{folder}' && " for folder in hidden)
        ray = f"'{sys.executable}' -c 'from ray.scripts.scripts import main; main()'"
        start = (
            f"{mounts}exec {ray} start --address={self.address} --num-cpus=1 --block"
            f" --object-store-memory={_STORE_BYTES} --disable-usage-stats {options}"
        )
        self._blind.append(
            subprocess.Popen(
                [*inside, "unshare", "--mount", "bash", "-c", start],
                env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def kill(self, node: Any) -> None:
        """Kills a node as a loss of power does."""
        for processes in list(node.all_processes.values()):
            for info in processes:
                info.process.kill()

    def kill_head(self) -> None:
        """Kills the node that knows of the others."""
        self.kill(self._cluster.head_node)

    def close(self) -> None:
        """Ends all."""
        for process in self._blind:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for node in list(self._cluster.worker_nodes):
            self.kill(node)
        self.kill(self._cluster.head_node)
        # a network lives on while a process of it dies; its cable goes at once
        made = [("link", "del", name) for name in self._networks]
        made += [("netns", "del", name) for name in self._networks]
        for command in (*made, ("link", "del", f"sfm{os.getpid()}")):
            with suppress(OSError, subprocess.CalledProcessError):  # not all was made
                _ip(*command)


def _ip(*args: str) -> str:
    return subprocess.run(
        ["ip", *args], check=True, capture_output=True, text=True
    ).stdout


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster that ends with the block."""
    nodes = RayNodes()
    try:
        yield nodes
    finally:
        nodes.close()
