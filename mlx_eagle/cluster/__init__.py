"""One target on several machines: rank 0 decides and drafts, the others hold shards and follow."""
