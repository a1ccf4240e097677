"""How a head wants to be run, found by measuring how well it drafts."""
