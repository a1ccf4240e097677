"""The loop: draft, verify, accept, commit. Start reading in `loop.py`."""
