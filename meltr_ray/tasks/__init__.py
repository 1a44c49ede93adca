"""Tasks, one a file: its batch, its losses, its metric."""
