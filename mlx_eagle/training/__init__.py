"""Heads made on this machine: data, features of the target, training-time test, export."""
