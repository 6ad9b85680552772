"""The training loop of any task."""
