"""GGUF files made up for tests: written by the package gguf, as by llama.cpp's converter."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

Array = NDArray[Any]
# A word of each letter, a space, and tokens with a role. Ids are their places.
ALPHABET = [*"abcdefghijklmnopqrstuvwxyz", "\u0120", "."]
PAIRS = ["a b", "\u0120 a", "t h", "th e"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*ALPHABET, *(pair.replace(" ", "") for pair in PAIRS), *SPECIALS]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


class File(NamedTuple):
    """What a file is made of: each writes its part."""

    architecture: str
    facts: Callable[[gguf.GGUFWriter], None]
    tensors: Mapping[str, tuple[Array, Kind]]
    vocabulary: Callable[[gguf.GGUFWriter], None]


def write(file: Path, content: File) -> Path:
    """Write a GGUF file."""
    writer = gguf.GGUFWriter(file, content.architecture)
    content.facts(writer)
    content.vocabulary(writer)
    for name, (array, kind) in content.tensors.items():
        raw = kind not in (Kind.F32, Kind.F16)
        writer.add_tensor(name, array, raw_dtype=kind if raw else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def byte_level(writer: gguf.GGUFWriter, n_tokens: int = 64, pre: str = "smollm") -> None:
    """Write a tiny byte-level vocabulary, filled up with unused tokens."""
    filler = [f"[PAD{number}]" for number in range(len(TOKENS), n_tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*TOKENS, *filler])
    kinds = [1] * (len(TOKENS) - len(SPECIALS)) + [3] * len(SPECIALS) + [5] * len(filler)
    writer.add_token_types(kinds)
    writer.add_token_merges(PAIRS)
    writer.add_bos_token_id(TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_chat_template(TEMPLATE)


def llama_facts(writer: gguf.GGUFWriter, **changes: int) -> None:
    """Write the facts of a tiny llama."""
    sizes = {"layers": 2, "hidden": 64, "ff": 96, "heads": 4, "kv": 2, "context": 256} | changes
    writer.add_block_count(sizes["layers"])
    writer.add_context_length(sizes["context"])
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["ff"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(sizes["hidden"] // sizes["heads"])
    writer.add_rope_freq_base(10000.0)


def llama_shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a tiny llama, by their names in a GGUF file."""
    layer: dict[str, tuple[int, ...]] = {
        **{"attn_norm": (64,), "ffn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64)},
        **{"attn_v": (32, 64), "attn_output": (64, 64), "ffn_gate": (96, 64), "ffn_up": (96, 64)},
        "ffn_down": (64, 96),
    }
    found = {"token_embd.weight": (64, 64), "output_norm.weight": (64,)}
    for number in range(layers):
        found |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], kind: Kind = Kind.F32, seed: int = 0
) -> dict[str, tuple[Array, Kind]]:
    """Return random tensors: matrices of a kind, the rest of 32 bits."""
    noise = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = (noise.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
        found[name] = stored(values, kind if len(shape) > 1 else Kind.F32)
    return found


def stored(values: Array, kind: Kind) -> tuple[Array, Kind]:
    """Return values as a file has them."""
    if kind in (Kind.F32, Kind.F16):
        return values.astype(np.float32 if kind == Kind.F32 else np.float16), kind
    return gguf.quants.quantize(values, kind), kind


def tiny_llama(kind: Kind = Kind.F32) -> File:
    """Return a tiny random llama with a byte-level vocabulary."""
    return File("llama", llama_facts, random_tensors(llama_shapes(), kind), byte_level)


def random_blocks(kind: Kind, shape: Sequence[int], seed: int = 0) -> Array:
    """Return random but sound blocks of a kind for rows of values: scales are small numbers.

    Args:
        kind: whose bytes are numbers of 16 bits at `_HALVES`, and anything else.
        shape: of the values, rows last.
        seed: of the noise.

    Returns:
        [..., bytes of a row] uint8.
    """
    noise = np.random.default_rng(seed)
    block, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = noise.integers(0, 256, (*shape[:-1], shape[-1] // block, width), dtype=np.uint8)
    for at in _HALVES.get(kind, ()):
        values = noise.uniform(-0.01, 0.01, blocks.shape[:-1]).astype(np.float16)
        blocks[..., at : at + 2] = values[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


# Where in a block there are numbers of 16 bits.
_HALVES: dict[Kind, tuple[int, ...]] = {
    **dict.fromkeys((Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.IQ4_XS), (0,)),
    **dict.fromkeys((Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K), (0, 2)),
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q6_K: (208,),
}
