"""Answers as models write them: what is said, what is only thought, and calls of tools."""
