"""What a target or head remembers of a text, by layer: a tree is tried, a path is kept."""
