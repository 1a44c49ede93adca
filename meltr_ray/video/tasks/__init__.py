"""Tasks: each its examples, predictions and metrics, for any backbone."""
