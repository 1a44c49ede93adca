"""Data sets that are made or imported."""
