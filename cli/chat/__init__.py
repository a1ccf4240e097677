"""`mlx-eagle chat`: the loop that reads, its commands, and the engine behind it."""
