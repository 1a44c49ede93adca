"""What a sweep searches over: pure functions from names to domains and to lists of settings."""
