"""Ways to propose a tree, one module per way."""
