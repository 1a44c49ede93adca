"""UniVL (arXiv 2002.06353), over frame features."""
