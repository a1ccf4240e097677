"""A training as it goes on: updates, measurements, checkpoints, one process or several."""
