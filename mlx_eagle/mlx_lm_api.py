"""mlx-lm's functions under mlx-lm's names, for programs that are written for it.

Change the import, and name a head if the one that is known is not wanted:

    from mlx_eagle.mlx_lm_api import generate, load, make_prompt_cache, stream_generate

    model, tokenizer = load("mlx-community/Qwen3-4B-4bit")
    for response in stream_generate(model, tokenizer, prompt, max_tokens=100):
        print(response.text, end="", flush=True)

Text, tokens and log-probabilities are mlx-lm's. What differs: `model` is an `Engine`; a prompt
cache knows its tokens, so processors see those of earlier prompts too, and the newest of them is
read again with the next prompt, which progress reports leave out; a text keeps the space with which
it begins; with `kv_bits` every row is quantized as it is written, where mlx-lm reads the first
chunk of a prompt in full precision.
Options of ours, such as `seed`, `json_schema` or `tree`, are taken as well.
"""

import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine
from mlx_eagle.files.json_files import read_json
from mlx_eagle.hub.download import fetch
from mlx_eagle.loading import load as load_engine
from mlx_eagle.session.prompt import Prompt, encode
from mlx_eagle.session.responses import Responses
from mlx_eagle.session.session import Session
from mlx_eagle.tree_shape import TreeShape

UNLIMITED = 1 << 40  # tokens, for max_tokens=-1; the context ends the answer


def load(
    path_or_hf_repo: str | Path,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    adapter_path: str | Path | None = None,
    lazy: bool = False,
    return_config: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """Return an engine and its tokenizer, in mlx-lm's order of parameters.

    Args:
        path_or_hf_repo: as `model` of `mlx_eagle.load`.
        tokenizer_config: refused, unless it only says that no code is to be trusted.
        model_config: refused: what runs is what the files say.
        adapter_path: a LoRA adapter, as mlx-lm makes them.
        lazy: taken and not followed: an engine has read its weights.
        return_config: return the target's config.json as well.
        revision: refused: fetch that revision, and give its folder.
        trust_remote_code: refused.
        **options: those of `mlx_eagle.load`.

    Raises:
        ValueError: naming what is refused.
        EagleError: as `mlx_eagle.load` does.
    """
    refused = {
        "tokenizer_config": {k: v for k, v in (tokenizer_config or {}).items() if v},
        "model_config": model_config,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    if given := [name for name, value in refused.items() if value]:
        raise ValueError(f"{given[0]} was given, which mlx_eagle does not take")
    engine = load_engine(path_or_hf_repo, adapter_path=adapter_path, **options)
    if not return_config:
        return engine, engine.tokenizer
    return engine, engine.tokenizer, read_json(fetch(path_or_hf_repo) / "config.json")


class PromptCache:
    """What a series of prompts and answers left behind; what was cut short counts as far as it got.

    Attributes:
        session: with the rows.
        tokens: prompts and answers so far, as they were given and returned. What the session holds
            may be less: a prompt whose reading was cancelled is held as far as it was read.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tokens = list(session.prefix.tokens)
        self._open: weakref.ref[Responses] | None = None

    def finish(self) -> None:
        """End the stream that is still open; what it has given so far counts."""
        stream = self._open() if self._open is not None else None
        if stream is not None:
            stream.close()

    def stream(
        self, ids: list[int], report: Callable[[int, int], None] | None, **options: Any
    ) -> Responses:
        """Answer a prompt that goes on after what was seen; only its own tokens are counted.

        A stream that is still open ends before.

        Args:
            ids: of the new prompt.
            report: called with (prompt tokens done, prompt tokens in all).
            **options: the fields of `GenerationOptions`.
        """
        self.finish()
        ids = [*self.tokens, *ids]
        n_known = len(self.tokens)

        def progress(done: int, total: int) -> None:
            if report is not None and done >= n_known:
                report(done - n_known, total - n_known)

        options = {"logprobs": True} | options
        answer = self.session.stream_generate(ids, progress=progress, **options)
        stream = self._counted(answer, ids, n_known)
        self._open = weakref.ref(stream)
        return stream

    def _counted(self, stream: Responses, ids: list[int], n_known: int) -> Responses:
        """Pass on an answer to `ids`, of which `n_known` were seen before, and note its tokens."""
        answer: list[int] = []
        with closing(stream):
            for response in stream:
                answer.append(response.token)
                self.tokens = [*ids, *answer]
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
    """Write a prompt cache to a file, once its open stream has ended; see `Session.save`."""
    cache.finish()
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
    prompt_cache: PromptCache | None = None,
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
        prompt_cache: the prompt goes on after what this one has seen.
        prompt_progress_callback: called with (prompt tokens done, prompt tokens in all).
        **options: `kv_bits`, `kv_group_size` and `max_kv_size` for a new cache; `num_draft_tokens`
            for a chain of so many every round; `sampler`, `logits_processors`,
            `prefill_step_size` and other fields of `GenerationOptions`.

    Raises:
        TypeError: if an option does not exist.
        ValueError: if an option is out of range, or a cache was given with options for a new one.
        EagleError: as `Session.stream_generate` does.
    """
    if draft_model is not None:
        raise ValueError("draft_model was given, but the engine drafts with its own head")
    if start := options.pop("quantized_kv_start", 0):
        raise ValueError(
            f"quantized_kv_start is {start}, but with kv_bits every row is quantized: leave it out"
        )
    if (n_drafted := options.pop("num_draft_tokens", None)) is not None:
        options = {"tree": TreeShape.chain(n_drafted)} | options
    if tokenizer is not None and tokenizer is not model.tokenizer:
        raise ValueError("tokenizer is not the engine's own; give engine.tokenizer or None")
    cache = _choose_cache(model, prompt_cache, options)
    given = cast(list[int], prompt.tolist()) if isinstance(prompt, mx.array) else prompt
    ids = encode(model.tokenizer, given, cache.session.chosen_template(options))
    limit = UNLIMITED if max_tokens == -1 else max_tokens
    return cache.stream(ids, prompt_progress_callback, max_tokens=limit, **options)


def _choose_cache(
    model: Engine, prompt_cache: PromptCache | None, options: dict[str, Any]
) -> PromptCache:
    """Return the caller's cache, or a new one made by the options for one, which are taken out."""
    if prompt_cache is not None and not isinstance(prompt_cache, PromptCache):
        raise ValueError("prompt_cache is not from make_prompt_cache of mlx_eagle.mlx_lm_api")
    bits, size = options.pop("kv_bits", None), options.pop("max_kv_size", None)
    group_size = options.pop("kv_group_size", 64)
    if not bits and not size:
        return prompt_cache or PromptCache(model.session())
    if prompt_cache is not None:
        raise ValueError("kv_bits and max_kv_size are for a new cache; leave out prompt_cache")
    return PromptCache(model.with_kv(KVOptions(bits, group_size, size)).session())


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
