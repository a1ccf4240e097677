"""`load` and `Engine`: a target, perhaps with a head, ready to generate."""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer, maybe_set_recommended_wired_limit

from mlx_eagle.drafters.eagle3 import Eagle3Drafter
from mlx_eagle.errors import CheckpointError, EagleError, UnsupportedTargetError
from mlx_eagle.head import Eagle3Head, load_head
from mlx_eagle.hub import Progress, fetch
from mlx_eagle.probe import check_tree_verification
from mlx_eagle.session import GenerationResult, Prompt, Responses, Session
from mlx_eagle.target import Target

DEMO = Path(__file__).parent / "demo"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class EngineInfo(NamedTuple):
    """What is loaded, in words for a banner."""

    target: str
    target_precision: str
    head: str
    head_precision: str
    speculation: str
    device: str
    is_demo: bool


class Engine:
    """A loaded target and head; conversations share them and keep their own caches.

    MLX ties arrays to the thread that made them: load and generate on the same thread.
    """

    def __init__(
        self, target: Target, tokenizer: Any, head: Eagle3Head | None, info: EngineInfo
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.head = head
        self.info = info

    def session(self, system: str | None = None) -> Session:
        """Start a conversation."""
        make = None
        if self.head is not None:
            head, embedding = self.head, self.target.embedding

            def make() -> Eagle3Drafter:
                return Eagle3Drafter(head, embedding)

        return Session(self.target, self.tokenizer, make, self.info.speculation, system)

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer, token by token; see `Session.stream_generate`."""
        return self.session().stream_generate(prompt, **options)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Return a whole answer; the options are those of `Session.stream_generate`."""
        responses = list(self.stream_generate(prompt, **options))
        last = responses[-1]
        assert last.stats is not None and last.finish_reason is not None, "a stream has an end"
        text = "".join(response.text for response in responses)
        tokens = [response.token for response in responses]
        return GenerationResult(text, tokens, last.finish_reason, last.stats)


def load(
    model: str | Path | None = None,
    head: str | Path | None = None,
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Load a target, and a head for it.

    Args:
        model: a folder or hub repository that mlx-lm can load; None is the demo pair.
        head: a converted head; None means plain decoding, but for the demo pair.
        dtype: "float32", "float16" or "bfloat16" for everything that is not quantized; None
            keeps the stored type on a GPU and takes float32 on a CPU, where 16 bits are slow.
        progress: called with (phase, done, total): downloads in bytes, then "load" in steps.

    Raises:
        EagleError: if something cannot be found, loaded or used together.
    """
    compute_type = _dtype(dtype)
    is_demo = model is None
    if model is None:
        model, head = DEMO / "target", head or DEMO / "head"
    folder = fetch(model, progress=progress)
    head_folder = fetch(head, progress=progress) if head is not None else None
    _report(progress, 0)
    network, tokenizer = _load_target(folder, compute_type)
    _report(progress, 1)
    drafter_head = load_head(head_folder) if head_folder else None
    maybe_set_recommended_wired_limit()
    target = _with_head(network, drafter_head) if drafter_head else _without_head(network)
    mx.eval(network.parameters(), drafter_head.parameters() if drafter_head else [])
    _report(progress, 2)
    info = EngineInfo(
        target=_name(model),
        target_precision=_precision(network),
        head=_name(head) if head else "",
        head_precision=_precision(drafter_head) if drafter_head else "",
        speculation="on" if drafter_head else "off: no head was given",
        device=str(mx.device_info()["device_name"]),
        is_demo=is_demo,
    )
    return Engine(target, tokenizer, drafter_head, info)


def _name(model: str | Path) -> str:
    """Return what to call a model in a banner."""
    demo = {DEMO / "target": "pydoc-llama (demo)", DEMO / "head": "pydoc-eagle3 (demo)"}
    return demo.get(Path(model), str(model))


def _report(progress: Progress | None, step: int) -> None:
    if progress is not None:
        progress("load", step, 2)


def _dtype(name: str | None) -> mx.Dtype | None:
    """Return the type to compute in; None keeps what is stored."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.cpu else None
    if name not in DTYPES:
        raise EagleError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _load_target(folder: Path, dtype: mx.Dtype | None) -> tuple[nn.Module, Any]:
    """Load model and tokenizer with mlx-lm's loader; remote code is refused."""
    try:
        network, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder} is not a target that mlx-lm can load ({reason})"
        ) from error
    if dtype is not None:
        network.set_dtype(dtype)
    return network, tokenizer


def _with_head(network: nn.Module, head: Eagle3Head) -> Target:
    """Return the target, tapped for the head; a target that cannot verify trees is refused."""
    target = Target(network, head.config.taps)
    _fit(head, target)
    check_tree_verification(target)
    return target


def _without_head(network: nn.Module) -> Target:
    """Return the target for plain decoding, with mlx-lm's own caches where ours do not fit."""
    try:
        target = Target(network)
        check_tree_verification(target)
    except UnsupportedTargetError:
        return Target(network, speculate=False)
    return target


def _fit(head: Eagle3Head, target: Target) -> None:
    """Give the head the target's type, after checking that they belong together."""
    config, sample = head.config, target.embedding(mx.array([0]))
    vocab, hidden = target.vocab_size, sample.shape[-1]
    found = {"hidden size": (config.target_hidden_size, hidden)}
    found["vocabulary"] = (config.target_vocab_size, vocab)
    wrong = [f"{what} {a} (target: {b})" for what, (a, b) in found.items() if a != b]
    if config.hidden_size != hidden:
        wrong.append(f"own hidden size {config.hidden_size} (target: {hidden})")
    if wrong:
        raise CheckpointError(
            f"the head was made for another target: {', '.join(wrong)}; "
            "give the target that the head was trained for"
        )
    head.set_dtype(sample.dtype)


def _precision(network: nn.Module) -> str:
    """Say how a network's weights are stored, e.g. "8-bit, group 64" or "float32"."""
    kinds = {
        f"{module.bits}-bit, group {module.group_size}"
        for _, module in network.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    if kinds:
        return " and ".join(sorted(kinds))
    largest = max(dict(tree_flatten(network.parameters())).values(), key=lambda array: array.size)
    return str(largest.dtype).removeprefix("mlx.core.")
