"""mlx-lm's functions under mlx-lm's names, for programs that are written for it.

Change the import, and name a head if the one that is known is not wanted:

    from mlx_eagle.mlx_lm_api import generate, load, make_prompt_cache, stream_generate

    model, tokenizer = load("mlx-community/Qwen3-4B-4bit")
    for response in stream_generate(model, tokenizer, prompt, max_tokens=100):
        print(response.text, end="", flush=True)

Text, tokens and log-probabilities are mlx-lm's. What differs: `model` is an `Engine`; a prompt
cache knows its tokens, so processors see those of earlier prompts too, and the newest of them is
read again with the next prompt, which progress reports leave out; with `kv_bits` every row is
quantized as it is written, where mlx-lm reads the first chunk of a prompt in full precision.
Options of ours, such as `seed`, `json_schema` or `tree`, are taken as well.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine
from mlx_eagle.loading import load as load_engine
from mlx_eagle.sampling.token_selector import LogitsProcessor
from mlx_eagle.session.prompt import Prompt, encode
from mlx_eagle.session.responses import Responses
from mlx_eagle.session.session import Session

UNLIMITED = 1 << 40  # tokens, for max_tokens=-1; the context ends the answer


def load(path_or_hf_repo: str | Path, **options: Any) -> tuple[Engine, Any]:
    """Return an engine and its tokenizer; the options are those of `mlx_eagle.load`."""
    engine = load_engine(path_or_hf_repo, **options)
    return engine, engine.tokenizer


class PromptCache:
    """What a series of prompts and answers left behind; what was cut short counts as far as it got.

    Attributes:
        session: with the rows.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def tokens(self) -> list[int]:
        """Prompts and answers so far, as they were given and returned."""
        return self.session.prefix.tokens

    def follow(self, n_known: int, stream: Responses) -> Responses:
        """Pass on an answer; its prompt counts without the `n_known` tokens before it."""
        with closing(stream):
            for response in stream:
                yield response._replace(prompt_tokens=response.prompt_tokens - n_known)


def make_prompt_cache(model: Engine, max_kv_size: int | None = None) -> PromptCache:
    """Return what keeps the rows of a prompt for the next one.

    Args:
        model: the engine.
        max_kv_size: rows to keep, the first four and the newest.
    """
    chosen = model if max_kv_size is None else model.with_kv(KVOptions(max_size=max_kv_size))
    return PromptCache(chosen.session())


def save_prompt_cache(file_name: str | Path, cache: PromptCache) -> None:
    """Write a prompt cache to a file; see `Session.save`."""
    cache.session.save(file_name)


def load_prompt_cache(file_name: str | Path, model: Engine) -> PromptCache:
    """Return a prompt cache from a file; unlike in mlx-lm, the model must be given.

    Raises:
        EagleError: if the file is damaged, or of another target, head or version.
    """
    return PromptCache(model.load_session(file_name))


def stream_generate(
    model: Engine,
    tokenizer: Any,
    prompt: Prompt | mx.array,
    max_tokens: int = 256,
    draft_model: None = None,
    *,
    sampler: Callable[[mx.array], mx.array] | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    max_kv_size: int | None = None,
    prompt_cache: PromptCache | None = None,
    prefill_step_size: int = 2048,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    prompt_progress_callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Responses:
    """Stream an answer; every response carries its `logprobs`, as in mlx-lm.

    Args:
        model: the engine.
        tokenizer: the engine's own, or None.
        prompt: text, token ids or, beyond mlx-lm, chat messages.
        max_tokens: most tokens to generate; -1 for as many as the context holds.
        draft_model: mlx-lm's way to speculate; the engine has its own, so only None is taken.
        sampler: from log-probabilities [1, V] to a token [1]; None takes the likeliest.
        logits_processors: functions of tokens [T] and logits [1, V].
        max_kv_size: rows that the KV cache keeps.
        prompt_cache: the prompt goes on after what this one has seen.
        prefill_step_size: prompt tokens per forward.
        kv_bits: 8 or 4 quantizes the KV cache, from its first row on.
        kv_group_size: numbers that share a scale in it.
        prompt_progress_callback: called with (prompt tokens done, prompt tokens in all).
        **options: further fields of `GenerationOptions`.

    Raises:
        TypeError: if an option does not exist.
        ValueError: if an option is out of range, or a cache was given with options for a new one.
        EagleError: as `Session.stream_generate` does.
    """
    if draft_model is not None:
        raise ValueError("draft_model was given, but the engine drafts with its own head")
    if tokenizer is not None and tokenizer is not model.tokenizer:
        raise ValueError("tokenizer is not the engine's own; give engine.tokenizer or None")
    if prompt_cache is not None and not isinstance(prompt_cache, PromptCache):
        raise ValueError("prompt_cache is not from make_prompt_cache of mlx_eagle.mlx_lm_api")
    kv = KVOptions(kv_bits, kv_group_size, max_kv_size) if kv_bits or max_kv_size else None
    if prompt_cache is not None and kv is not None:
        raise ValueError("kv_bits and max_kv_size are for a new cache; leave out prompt_cache")
    if isinstance(prompt, mx.array):
        prompt = cast(list[int], prompt.tolist())
    ids = encode(model.tokenizer, prompt)
    cache = prompt_cache or PromptCache((model.with_kv(kv) if kv else model).session())
    n_known = len(cache.tokens)

    def report(done: int, total: int) -> None:
        if prompt_progress_callback is not None and done >= n_known:
            prompt_progress_callback(done - n_known, total - n_known)

    stream = cache.session.stream_generate(
        [*cache.tokens, *ids],
        max_tokens=UNLIMITED if max_tokens == -1 else max_tokens,
        sampler=sampler,
        logits_processors=logits_processors or (),
        prefill_step_size=prefill_step_size,
        progress=report,
        **({"logprobs": True} | options),
    )
    return cache.follow(n_known, stream)


def generate(
    model: Engine, tokenizer: Any, prompt: Prompt | mx.array, verbose: bool = False, **options: Any
) -> str:
    """Return the text of a whole answer; see `stream_generate`.

    Args:
        model: the engine.
        tokenizer: the engine's own, or None.
        prompt: text, token ids or chat messages.
        verbose: print the text as it comes, and the speeds in the end.
        **options: of `stream_generate`.
    """
    text = ""
    for response in stream_generate(model, tokenizer, prompt, **options):
        text += response.text
        if verbose:
            print(response.text, end="", flush=True)
    if verbose and text:
        rates = f"prompt {response.prompt_tps:.1f}, answer {response.generation_tps:.1f} tokens/s"
        print(f"\n{rates}, peak memory {response.peak_memory:.2f} GB")
    return text
