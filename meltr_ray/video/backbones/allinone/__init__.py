"""All-in-one (arXiv 2203.07303), over pixels."""
