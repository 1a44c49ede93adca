"""VIOLET (arXiv 2111.12681), over pixels."""
