"""What a sweep searches over: pure functions from names to Ray Tune domains and to lists of settings."""
