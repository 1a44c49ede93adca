"""A Ray cluster to run on: started here, or joined where `cluster` says, with an end in one line where there is none."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from typing import Any, Iterator

import psutil

from meltr_ray.cluster.interruption import own_handlers
from meltr_ray.cluster.local import kept_to_this_machine
from meltr_ray.cluster.travel import packed
from meltr_ray.config import Config
from meltr_ray.config.run import LOCAL
from meltr_ray.errors import ConfigError, check, first_line
from meltr_ray.loggers.named import environment as loggers_environment

ANSWER_SECONDS = 6
"""In which a cluster has to accept a connection, and to greet."""
SETTINGS_FRAME = 4
"""Of HTTP/2 (RFC 9113, section 6.5): the first that either side sends."""
MEND = "give the host:port that `ray start --head` printed, or use cluster=local"


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """A Ray cluster as `cluster` says, shut down at the end; the handlers of signals stay those of the caller.

    Raises:
        ConfigError: the cluster can't be reached or started.
    """
    os.environ.update(ray_environment())
    address = config.cluster
    check_answers(address)
    import ray

    try:
        with own_handlers():
            join(config) if address != LOCAL else start()
    except SystemExit as ended:  # of the handler that Ray has while it starts
        ray.shutdown()
        if ended.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt from None
        raise
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises ConfigError: nothing answers there, or something that is no Ray cluster; Ray itself would wait for minutes, in silence."""
    check("://" not in address, "cluster", address, f"is an address of Ray Client, which runs no sweep; {MEND}")
    if address == LOCAL:
        return
    from ray._private import services

    try:
        there = services.canonicalize_bootstrap_address(address)
    except Exception as error:  # it parses, and looks up names
        raise ConfigError(f"cluster={address}: {first_line(error)}; {MEND}") from None
    check(
        there is not None,
        "cluster",
        address,
        "no Ray cluster runs on this machine; start one with `ray start --head`, or use cluster=local",
    )
    host, port = services.parse_address(there)
    try:
        speaks = speaks_http2(host, int(port))
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"cluster={address}: nothing answers at {there} ({first_line(error)}); {MEND}") from None
    check(speaks or os.environ.get("RAY_USE_TLS") == "1", "cluster", address, f"what answers at {there} is no Ray cluster; {MEND}")
    from ray._raylet import GcsClient

    try:
        with silent():
            if address == "auto":
                take_up_token(there)
            GcsClient(address=there)
    except Exception as error:
        raise ConfigError(
            f"cluster={address}: what answers at {there} is no Ray cluster of this version ({first_line(error)}); {MEND}"
        ) from None


def take_up_token(there: str) -> None:
    """The token, of a cluster that Ray finds by itself, where that asks for one.

    Ray takes it up wherever there is one, and then hears no call of a cluster that has none: its trials would die as they begin.
    """
    from ray._private.worker import maybe_enable_token_auth_if_token_available
    from ray._raylet import GcsClient

    if "RAY_AUTH_MODE" in os.environ:
        return
    try:
        GcsClient(address=there)
        os.environ["RAY_AUTH_MODE"] = "disabled"
    except Exception:  # refused without one
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def speaks_http2(host: str, port: int) -> bool:
    """Whether a server of gRPC may be there, as Ray's is: it greets at once, and Ray would wait long for another.

    Raises:
        OSError: none can be reached within `ANSWER_SECONDS`.
    """
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS_FRAME, 0, 0, 0, 0, 0]))
        with suppress(OSError):
            return connection.recv(9)[3:4] == bytes([SETTINGS_FRAME])
        return False


def join(config: Config) -> None:
    """Raises ConfigError: Ray says why not."""
    import ray

    address = config.cluster
    try:
        with packed(config.workload) as modules:
            ray.init(address=address, **options(modules))
    except ConfigError:
        raise
    except Exception as error:  # of many kinds: a machine that isn't part of the cluster, another version, a cluster that ends
        raise ConfigError(f"cluster={address}: {first_line(error)}; run this on a machine of the cluster, or use cluster=local") from None


def start() -> None:
    """On this machine; once more where it took too long, as it does on a busy one.

    Raises:
        ConfigError: it took too long again.
    """
    import ray

    why = ""
    for _ in range(2):
        before = set(psutil.Process().children(recursive=True))
        try:
            with kept_to_this_machine():
                ray.init(address=LOCAL, include_dashboard=True, **options())
            return
        except Exception as error:
            why = first_line(error)
            ray.shutdown()
            left = set(psutil.Process().children(recursive=True)) - before  # they would run until this process ends
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
    raise ConfigError(f"cluster=local: Ray didn't start, tried twice ({why}); try again when this machine is less busy, or join a cluster")


def options(modules: Sequence[str] = ()) -> dict[str, Any]:
    """`modules`: folders of code that travels."""
    environment = {"env_vars": ray_environment() | loggers_environment()} | ({"py_modules": list(modules)} if modules else {})
    return {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": environment}


@contextmanager
def silent() -> Iterator[None]:
    """What Ray's C++ says to standard error, in lines of its own, is left out."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def ray_environment() -> dict[str, str]:
    """Environment variables of Ray's processes and of the driver."""
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "100",  # else trials of a searcher start one by one
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end one phase of a sweep at Ctrl-C and go on with the next
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONHASHSEED": "0",  # a workload that walks over a set sees it in the same order in every trial
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
