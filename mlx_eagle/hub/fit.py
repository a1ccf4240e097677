"""Whether a target, its head and a conversation fit into this machine, before they are downloaded.

It goes by the sizes that the hub lists and by config.json; nothing else is fetched.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.cache.estimate import (
    device_memory,
    estimated_cache_bytes,
    estimated_head_bytes,
    number_bytes,
)
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.json_files import language_config, read_json
from mlx_eagle.hub.download import Listing, Notify, fetch, list_files
from mlx_eagle.hub.head_choice import NGRAM, NO_HEAD, draft_model_of, head_beside
from mlx_eagle.hub.known_heads import default_head
from mlx_eagle.hub.native_mtp import OWN
from mlx_eagle.load_options import LoadOptions

CONTEXT = 4096  # tokens that a conversation should have at least, where nobody says
MOST = 1 << 24  # tokens
WEIGHTS = (".safetensors", ".bin", ".pt")


class Fit(NamedTuple):
    """What a target needs and what there is, in bytes; the cache is an estimate.

    Attributes:
        download: still to be fetched, of target and head.
        weights: of the target, in memory.
        head: of its head; 0 without one.
        context: tokens of a conversation that are counted.
        cache: what they take.
        most_tokens: that fit beside the weights.
        memory: that MLX may use on this machine.
    """

    download: int
    weights: int
    head: int
    context: int
    cache: int
    most_tokens: int
    memory: int

    @property
    def missing(self) -> int:
        """Bytes that are too few for the weights; negative if some are left."""
        return self.weights + self.head - self.memory

    def __str__(self) -> str:
        head = f", head {_gb(self.head)}" if self.head else ""
        parts = f"weights {_gb(self.weights)}{head}, {self.context:,} tokens {_gb(self.cache)}"
        room = f"{parts}; MLX may use {_gb(self.memory)} here"
        if self.missing > 0:
            return f"does not fit, by {_gb(self.missing + self.cache)}: {room}"
        few = f"not with {self.context:,}, by {_gb(self.missing + self.cache)}"
        only = f"; {few}" if self.missing + self.cache > 0 else ""
        return f"fits, with up to about {self.most_tokens:,} tokens{only}: {room}"


def foresee(
    model: str | Path,
    head: str | Path | None = None,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (it is frozen)
    files: Listing | None = None,
) -> Fit:
    """Return whether a target and its head will fit.

    Args:
        model: a folder, or `owner/name` on the hub.
        head: as for `load`.
        options: with which they will be loaded.
        files: of the target, if that is known; None asks for them.

    Raises:
        EagleError: if it cannot be found out.
    """
    config = _config_of(model)
    files = files or list_files(model)
    draft_model = draft_model_of(head)
    # Every conversation has a cache of each model.
    configs = [config, *([_config_of(draft_model)] if draft_model else [])]
    is_own = head_beside(head) == OWN
    drafter = list_files(head) if (head := draft_model or _head_of(model, head)) else None
    has_head = is_own or (drafter is not None and not draft_model)
    memory = options.memory_limit or device_memory()
    weights = int(weight_bytes(files.sizes) * _growth(config, options))
    n_head = weight_bytes(drafter.sizes) if drafter else 0
    context = options.max_context or CONTEXT
    room = memory - weights - n_head

    def cache(n_tokens: int) -> int:
        of_head = estimated_head_bytes(config, n_tokens, options) if has_head else 0
        return of_head + sum(estimated_cache_bytes(each, n_tokens, options) for each in configs)

    return Fit(
        download=files.missing + (drafter.missing if drafter else 0),
        weights=weights,
        head=n_head,
        context=context,
        cache=cache(context),
        most_tokens=max(bisect_right(range(MOST), room, key=cache) - 1, 0),
        memory=memory,
    )


def fit_check(
    model: str | Path, head: str | Path | None, options: LoadOptions, notify: Notify
) -> Callable[[Listing], None]:
    """Return what tells what a download will need here, and refuses one that would not fit.

    It is for `fetch`, and raises EagleError if target and head do not fit into memory, by how much
    not. A conversation that would be short for want of memory is told of.
    """

    def check(files: Listing) -> None:
        fit = foresee(model, head, options, files)
        if fit.missing > 0:
            raise EagleError(
                f"{model} {fit}; no weights were downloaded: take fewer bits or a smaller model, "
                "or set the limit yourself (--memory)"
            )
        notify(f"{model}: {_gb(fit.download)} to download; {fit}")

    return check


def _head_of(model: str | Path, head: str | Path | None) -> str | Path | None:
    """Return which head a target gets; None for none, or where that shows later."""
    if head == NGRAM:
        return None
    head = head_beside(head)
    if head is None and (known := default_head(model)) is not None:
        try:
            list_files(known.repo)
        except HubError:
            return None  # a known head that cannot be had is no error
        return known.repo
    # The layer of the target itself is found once its files are here.
    return None if head in (NO_HEAD, OWN) else head


def _config_of(model: str | Path) -> dict[str, Any]:
    """Return a model's configuration, of which nothing else is fetched."""
    return read_json(fetch(model, only=["config.json"]) / "config.json")


def weight_bytes(sizes: Mapping[str, int]) -> int:
    """Return the bytes of all weights that would be read."""
    kept = [n for n in sizes if n.endswith(".safetensors")] or list(sizes)
    return sum(sizes[name] for name in kept if name.endswith(WEIGHTS))


def _growth(config: dict[str, Any], options: LoadOptions) -> float:
    """Return how much larger weights become in memory: 16 bits are cast to 32 on a CPU."""
    facts = language_config(config)
    stored = str(facts.get("dtype") or facts.get("torch_dtype") or "float32")
    is_quantized = isinstance(config.get("quantization"), dict)
    wanted = {None: number_bytes(), "float32": 4}.get(options.dtype, 2)
    return wanted / 2 if stored.endswith("16") and not is_quantized else 1.0


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
