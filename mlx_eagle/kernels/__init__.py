"""Metal kernels for a few rows, and what decides where they run."""
