"""What runs leave on disk: written whole or not at all, read back as it was written, by one writer at a time."""

from meltr_ray.storage.whole import put, put_by_path

__all__ = ["put", "put_by_path"]
