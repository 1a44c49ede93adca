"""Video backbones, one a file."""
