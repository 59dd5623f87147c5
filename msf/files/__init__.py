"""Files that survive: written whole or not at all, found locally or on the hub, read as tensors."""
