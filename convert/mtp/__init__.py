"""Multi-token prediction layers of targets, turned into heads that `heads/load.py` loads.

They come inside of their target's checkpoint, as published or as an MLX copy that kept them, and as
repositories of their own. `layouts.py` says whose they are and what their tensors are called,
`facts.py` what follows for the forward pass, `norms.py` which norms are stored as differences from
1, `weights.py` reads the tensors: experts, FP8, and what is quantized already.
"""
