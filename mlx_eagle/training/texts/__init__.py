"""Texts to train on: read, split, answered by the target, encoded, packed into rows."""
