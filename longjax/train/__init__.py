"""Training: the loop, its step and optimizer, and what keeps a run alive."""
