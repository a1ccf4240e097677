"""Conversion of published heads and targets into folders that mlx-eagle runs.

From files to facts: `checkpoint` reads weights, safetensors or through `torch_files` and
`pickle_reader` PyTorch's; `identify` says what a folder is and which of the `dialects` a head is
written in; `tensor_shapes` and `medusa` read its sizes; `resolve_config` and the `rules` find its
facts, with `taps`, `rope_config` and `draft_ids`. `heads` and `targets` convert; `describe` says
what a folder holds. `export` is the way back: `publisher_layouts` say what a publisher's
files can say, `layout_files` write it. Nothing here runs a model.
"""
