"""An mlx-lm model seen as prefill, tree forward and taps."""
