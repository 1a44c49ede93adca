"""Metrics of retrieval, question answering, captioning and sentiment: pure functions of arrays and text."""
