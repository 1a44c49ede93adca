"""Video, the first tenant of the machine: three backbones, five tasks, their data."""
