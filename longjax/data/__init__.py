"""Data: documents to batches. Nothing here imports jax."""
