"""Ray: a trial under Tune, or on Ray Train workers, and the phases of a sweep."""
