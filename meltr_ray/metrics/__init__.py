"""Metrics of retrieval, question answering, captioning and sentiment, and their intervals: pure functions of arrays and text."""
