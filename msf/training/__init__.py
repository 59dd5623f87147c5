"""Training: images, losses, weight averages and the loop."""
