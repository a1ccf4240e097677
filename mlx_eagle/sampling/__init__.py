"""From logits to the target's own choice after every node: processors, grammars, draws."""
