"""Addresses of object storage, `s3://bucket/path?options`, told from paths; what isn't supported is refused by its scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from meltr_ray.errors import ConfigError, check

SCHEMES = ("s3", "gs")
"""Object storage that outputs may be in: S3 and what speaks its protocol, and Google Cloud Storage."""
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
LONGEST = 800
"""Bytes of a path in a bucket, of the 1024 that S3 takes; names of files come behind it."""
FORM = "give s3://bucket/path or gs://bucket/path"


@dataclass(frozen=True)
class Address:
    """A folder in a bucket."""

    scheme: str
    bucket: str
    """With `anonymous@` in front, if that was given."""
    path: str
    """Without slashes at its ends, and without the escapes of a URI."""
    options: str = ""
    """What stands behind the `?`: where the server is, and such."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{quote(self.path)}{'?' if self.options else ''}{self.options}"

    def __truediv__(self, name: str) -> Address:
        return replace(self, path=f"{self.path}/{name}".strip("/"))

    @property
    def parent(self) -> Address:
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def below(self, folder: str | Path) -> Path:
        """The folder of this machine that belongs to it, under `folder`."""
        return Path(folder, self.scheme, self.bucket, self.path)


def is_address(text: str) -> bool:
    """Whether it is an address of any scheme, supported or not, and no path."""
    return SCHEME.match(text) is not None


def parsed(setting: str, text: str) -> Address:
    """The address that a setting gives.

    Raises:
        ConfigError: another scheme, no bucket, a path that a folder here can't have, or a password, which every file would show.
    """
    found = SCHEME.match(text)
    scheme = found[1] if found else "this"
    check(scheme in SCHEMES, setting, text, f"{scheme} isn't supported; give a folder, or {FORM[5:]}")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigError(f"{setting}={text}: is no address; {FORM}") from None
    if parts.password is not None:
        raise ConfigError(f"{setting}={scheme}://...: has a password in it, which files and logs would show; take it out, and set the "
                          "variables of the environment that the storage asks for (docs/cluster.md)")  # fmt: skip
    check(text.startswith(f"{scheme}://") and bool(parts.hostname), setting, text, f"names no bucket; {FORM}")
    check(parts.fragment == "", setting, text, "has a # in it; write it as %23, or take it out")
    path = unquote(parts.path).strip("/")
    check(not {"", ".", ".."} & set(path.split("/")) or path == "", setting, text, "has an empty name, . or .. in it; take it out")
    check(path.isprintable(), setting, text, "has marks in it that no name has; take them out")
    check(len(path.encode()) <= LONGEST, setting, text, f"is a path of {len(path.encode())} bytes; shorten it to {LONGEST}")
    return Address(scheme, parts.netloc, path, parts.query)
