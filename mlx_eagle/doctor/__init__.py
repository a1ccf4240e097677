"""The facts of a head, found by measuring how well it drafts with other values of them."""
