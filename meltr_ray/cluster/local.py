"""A cluster of our own on this machine: Ray's token stays on, and what can listen on loopback alone does.

docs/security.md says what is left beyond that, and what protects it; `tests/test_sweep.py` looks.
"""

from __future__ import annotations

import functools
import os
import secrets
import socket
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator

import ray
from ray._private import ray_constants, services
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


@contextmanager
def kept_to_this_machine() -> Iterator[None]:
    """Around `ray.init` of a cluster of our own.

    Ray's processes get a process group of their own: a signal to the group of the command, as `timeout` sends it, would end them before what
    they train is saved. They still die with the command.
    """
    keep_token()
    before, popen = ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen
    ray_constants.ENABLE_RAY_CLUSTER = False  # as Ray has it on macOS and Windows: nodes get the address 127.0.0.1
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, services.ConsolePopen = before, popen


def keep_token() -> None:
    """Nobody without Ray's token may talk to the cluster that starts next, and no other user of this machine can read the token.

    Without it, whoever reaches a port of Ray's runs code as this user.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        os.environ.pop("RAY_AUTH_MODE", None)  # then a new cluster takes the token, whatever Ray read when it was imported
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token-") as file:  # for this user alone
            file.write(secrets.token_hex(32))
            file.flush()
            with suppress(FileExistsError):  # also of a command that started at the same moment
                os.link(file.name, path)
        path.chmod(0o600)  # Ray makes it readable by all
    except OSError:  # a home that can't be written
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _set_loopback_environment() -> None:
    """Collectives of this process go over loopback."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.update(GLOO_SOCKET_IFNAME=name, NCCL_SOCKET_IFNAME=name)


class OverLoopback(TorchConfig):
    """Ranks on one machine: they find each other by a file, where torch's store would listen to everybody without asking who it is."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _ByFile


class _ByFile(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")  # gone at the latest with this process
        worker_group.execute(_set_loopback_environment)
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _setup_torch_process_group, backend=backend_config.backend, world_rank=rank,
                                                   world_size=size, init_method=f"file://{self.folder.name}/store",
                                                   timeout_s=backend_config.timeout_s) for rank in range(size)])  # fmt: skip

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            self.folder.cleanup()
