"""What rounds cost on this machine: measured, kept, and handed to planners."""
