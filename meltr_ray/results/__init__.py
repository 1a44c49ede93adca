"""What runs leave behind: the results table, predictions, and intervals over their rows."""
