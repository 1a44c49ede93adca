"""Clips on disk and in memory: schema, store, vocabulary, video, and the data sets that are made or imported."""
