"""GGUF files, llama.cpp's format, turned into folders that mlx-lm loads.

`structure` reads the header of a file and checks its every count, length and offset, `reader` maps
the tensors that it names. `families` says which architectures there are and what their tensors are
called (`names`), `metadata`, `rope` and `config` make a config.json of the metadata, `vocabulary`,
`splits` and `tokenizer` a tokenizer. `source_weights` are the tensors in MLX's order; `formats` and
`packing` turn quantized blocks into MLX's, without quantizing them again where their values allow
it; `precision` chooses the type of the rest, `weights` converts and `write` writes it all, `report`
says what became what. Start at `convert.py`.
"""
