"""Nodes of a Ray cluster on this machine, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STORE_BYTES = 80 << 20  # the least that Ray takes is 75 MiB


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
            },
        )
        self._blind: list[subprocess.Popen[bytes]] = []

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
        mounts = "".join(f"mount -t tmpfs none '{folder}' && " for folder in hidden)
        ray = f"'{sys.executable}' -c 'from ray.scripts.scripts import main; main()'"
        start = (
            f"{mounts}exec {ray} start --address={self.address} --num-cpus=1 --block"
            f" --object-store-memory={_STORE_BYTES} --disable-usage-stats"
        )
        self._blind.append(
            subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", start],
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


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster that ends with the block."""
    nodes = RayNodes()
    try:
        yield nodes
    finally:
        nodes.close()
