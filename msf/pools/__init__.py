"""Pools: many generated pictures with their labels, how good they are, and whether training with them is worth it."""
