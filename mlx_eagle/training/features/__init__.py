"""What the target computed of the texts: made once, kept on disk, read as batches."""
