"""Conversion of published heads and targets into folders that mlx-eagle runs.

`opcodes`, `pickles` and `checkpoint` read untrusted files, `dialects` knows how publishers name
things, `heads` and `targets` convert, `write` makes the result appear whole or not at all, and
`inspect` says what a folder is. Nothing here runs a model.
"""
