"""Models by name: local folders, downloads, and the head that is known for a target."""
