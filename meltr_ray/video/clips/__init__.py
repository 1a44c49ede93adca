"""Clips on disk and in memory: schema, store, vocabulary, video."""
