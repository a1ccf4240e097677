"""What computed rows, in texts: the weights of target and head, and what else rows depend on.

Weights make a conversation: a file with rows of others is refused. What is beside them (ropes,
which follow `max_context` on some models, a head's facts, the libraries, the device and the chip)
makes rows alone: they are computed again.
"""

import hashlib
from collections.abc import Iterable, Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_eagle.calibration.store import this_machine
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.heads.ngram import JoinedHead, NgramHead

SAMPLES = 64  # numbers of every tensor that tell it from another
WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint32}  # by bytes of a number


def identify(network: nn.Module) -> str:
    """Return a text that tells the weights of a network from others, wherever they are stored.

    It is made of the names, types and shapes of all tensors, of a sum over all words of each, and
    of a few of its numbers, which a sum would not tell from the same ones in another order.
    """
    lines = (f"{name} {_contents(array)}" for name, array in _named(network.parameters()))
    return _digest(lines)


def identify_head(head: AnyHead | None) -> str:
    """Return a text that tells what an engine drafts with from anything else."""
    if head is None:
        return "none"
    if isinstance(head, NgramHead):
        return head.config.algorithm
    if isinstance(head, JoinedHead):
        return f"ngram+{identify_head(head.head)}"
    return f"draft model {identify(head)}" if isinstance(head, DraftModel) else identify(head)


def identify_settings(target: nn.Module, head: AnyHead | None) -> str:
    """Return a text that tells what rows depend on beside weights, libraries and device included.

    Args:
        target: the model.
        head: what drafts.
    """
    machine = [f"{name} {value}" for name, value in this_machine().items()]
    own = [*machine, *_settings(target), "head", *(_settings(head) if head is not None else [])]
    return _digest(f"{line}\n" for line in own)


def _settings(network: nn.Module) -> Iterator[str]:
    """Yield what a network's modules hold that is no weight: numbers, words, fixed arrays."""
    for path, module in sorted(network.named_modules()):
        plain = {name: v for name, v in vars(module).items() if not name.startswith("_")}
        yield f"{path} {type(module).__name__}"
        yield from (
            f"{name} {value}"
            for name, value in sorted(plain.items())
            if isinstance(value, int | float | str) or value is None or name in ("args", "config")
        )
        held = {name: value for name, value in module.items() if name.startswith("_")}
        yield from (f"{name} {_contents(array)}" for name, array in _named(held))


def _named(tree: object) -> list[tuple[str, mx.array]]:
    """Return the arrays in nested dictionaries and lists, by their paths."""
    leaves = dict(tree_flatten(tree)).items()
    return sorted((name, leaf) for name, leaf in leaves if isinstance(leaf, mx.array))


def _contents(array: mx.array) -> str:
    """Return type and shape of an array, the sum over its words, and some of them."""
    words = array.reshape(-1).view(WORDS[array.dtype.size])
    sample = words[:: max(1, words.size // SAMPLES)]
    total = words.astype(mx.uint32).sum().item()
    return f"{array.dtype} {array.shape}{total} {sample.tolist()}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]
