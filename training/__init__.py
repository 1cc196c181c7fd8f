"""Training: the loop around a backend's steps."""
