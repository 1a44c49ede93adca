"""Ways to combine losses: the vector of losses to the slopes of the training loss."""
