"""Trackers of experiments that a run's rows are shown in besides the results table, by name (setting `loggers`)."""
