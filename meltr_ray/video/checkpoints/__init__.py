"""The authors' checkpoints: read, started from, and written."""
