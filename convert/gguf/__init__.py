"""GGUF files, llama.cpp's format, turned into folders that mlx-lm loads.

`structure` checks every count, length and offset of a file before `reader` lets the package gguf
read it. `families` says which architectures there are and what their tensors are called (`names`),
`metadata`, `rope` and `config` make a config.json of the metadata, `vocabulary`, `splits` and
`tokenizer` a tokenizer. `formats` and `packing` turn quantized blocks into MLX's, without
quantizing them again where their values allow it; `precision` chooses the type of the rest,
`weights` writes it all, `report` says what became what. Start at `convert.py`.
"""
