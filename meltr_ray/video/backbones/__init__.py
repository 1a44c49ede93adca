"""Video backbones: each its model, inputs, losses and settings."""
