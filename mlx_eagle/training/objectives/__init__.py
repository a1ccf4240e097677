"""What a head is trained towards: losses, and what they are computed from."""
