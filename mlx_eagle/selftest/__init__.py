"""What somebody with another machine runs once: is everything right, and what does it cost."""
