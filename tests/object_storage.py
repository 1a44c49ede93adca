"""A real server of S3's protocol on loopback, in a process of its own: moto's.

Its `boto3` asks for a python-dateutil before 3 and ours is 4, so it has an environment of its own, which `make test` makes; MOTO_SERVER names
another.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SERVER = os.environ.get("MOTO_SERVER") or shutil.which(Path(sys.prefix) / "s3/bin/moto_server")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def served(bucket: str = "bucket", port: int = 0) -> Iterator[str]:
    """What stands behind the `?` of an address of it."""
    with socket.create_server(("127.0.0.1", port)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        make(bucket, options)
        yield options
    finally:
        server.kill()
        server.wait()


def make(bucket: str, options: str) -> None:
    from pyarrow.fs import FileSystem

    FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")[0].create_dir(bucket)
