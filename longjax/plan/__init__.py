"""Compiles a config for a TPU that is not here: memory, schedule, speed."""
