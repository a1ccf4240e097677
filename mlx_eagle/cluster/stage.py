"""One rank's stage of a pipeline, by mlx-lm's own `pipeline()`: some of the layers, each whole.

The last rank has the first layers and the embedding, and hands its rows on; rank 0 has the last
layers and the output layer. What the last layer gives is gathered on every rank, which ends a pass
on all of them. Nothing is added up over ranks, so that the numbers are those of one machine, to the
last bit, for any number of ranks.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_eagle.cluster.forward_end import ForwardEnd
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.files.json_files import language_config
from mlx_eagle.target.hooks import wrap_method
from mlx_eagle.target.target import Target, output_layer

# mlx-lm's modules whose `pipeline()` was tried, with two ranks: tests/cluster/test_stage.py.
TRIED = frozenset(
    (
        *("bailing_hybrid", "deepseek_v3", "deepseek_v32", "kimi_k3", "minimax_m3_vl"),
        *("ministral3", "qwen2", "qwen3_5", "qwen3_moe", "qwen3_next"),
    )
)
MODELS = "mlx_lm.models."


class Stage(NamedTuple):
    """Which layers a rank runs, and which boundaries of the residual stream it has.

    Attributes:
        rank: of this process.
        starts: by rank, the layers that run before its own; rank 0 runs last.
        group: of all ranks.
    """

    rank: int
    starts: tuple[int, ...]
    group: mx.distributed.Group

    @property
    def start(self) -> int:
        """Layers that run before those of this rank."""
        return self.starts[self.rank]

    def owner(self, boundary: int) -> int:
        """Return the rank that hands out a boundary's stream: rank 0 wherever it has it."""
        return next((r for r, start in enumerate(self.starts) if start <= boundary), 0)

    def elsewhere(self, taps: tuple[int, ...]) -> list[int]:
        """Return which taps rank 0 is sent by others."""
        return [boundary for boundary in taps if self.owner(boundary)]

    def exchange(
        self, recorded: Mapping[int, mx.array], taps: tuple[int, ...], end: ForwardEnd
    ) -> dict[int, mx.array]:
        """Return the streams [1, N, D] at the taps that rank 0 does not have, on every rank.

        Args:
            recorded: the streams of this rank, by boundary.
            taps: all of them, the same on every rank.
            end: of the pass, which evaluates what is exchanged.
        """
        owners = {boundary: self.owner(boundary) for boundary in self.elsewhere(taps)}
        if not owners:
            return {}
        places = {rank: [b for b, of in owners.items() if of == rank] for rank in owners.values()}
        most = max(map(len, places.values()))
        last = end.last
        own = [recorded[boundary].astype(last.dtype) for boundary in places.get(self.rank, [])]
        rows = mx.concatenate([*own, *[mx.zeros_like(last)] * (most - len(own))])  # [most, N, D]
        rows = mx.depends([rows], [last])[0]  # after what the model's own code exchanges
        gathered = mx.distributed.all_gather(rows, group=self.group)
        end.add(gathered)
        return {
            boundary: gathered[rank * most + place][None]
            for rank, boundaries in places.items()
            for place, boundary in enumerate(boundaries)
        }


class Seat(NamedTuple):
    """A rank's place among others, as mlx-lm's `pipeline()` asks for it; nothing is exchanged.

    Attributes:
        place: the rank.
        places: how many there are.
    """

    place: int
    places: int

    def rank(self) -> int:
        """The rank."""
        return self.place

    def size(self) -> int:
        """Number of ranks."""
        return self.places


def staging_module(model_class: type) -> str | None:
    """Return the module of mlx-lm whose model has a `pipeline()`; None where there is none."""
    names = [base.__module__ for base in model_class.__mro__]
    for name in (name for name in names if name.startswith(MODELS)):
        own = [v for v in vars(sys.modules[name]).values() if isinstance(v, type)]
        if any(kind.__module__ == name and hasattr(kind, "pipeline") for kind in own):
            return name.removeprefix(MODELS)
    return None


def check_stages(model_class: type, config: Mapping[str, Any], n_ranks: int, instead: str) -> None:
    """Refuse a target whose layers cannot be dealt out among so many ranks.

    Args:
        model_class: of mlx-lm.
        config: what config.json says.
        n_ranks: how many there are.
        instead: what would do instead.

    Raises:
        UnsupportedTargetError: saying why.
    """
    kind, module = config.get("model_type"), staging_module(model_class)
    if module is None:
        raise UnsupportedTargetError(
            f"mlx-lm has no pipeline for models of the kind {kind}; {instead}"
        )
    if module not in TRIED:
        raise UnsupportedTargetError(
            f"models of the kind {kind} were not tried as a pipeline yet, and might answer "
            f"otherwise there; {instead}"
        )
    n_layers = language_config(dict(config)).get("num_hidden_layers")
    if type(n_layers) is int and n_layers < n_ranks:
        raise UnsupportedTargetError(
            f"a model of {n_layers} layers cannot be a pipeline of {n_ranks} hosts; use fewer hosts"
        )


def make_stage(network: nn.Module, group: mx.distributed.Group) -> tuple[Stage, ForwardEnd]:
    """Leave a network only the layers of this rank; returns which, and where its passes end.

    Nothing is exchanged: every rank finds the layers of all, so that none waits for another one
    that has refused.

    Raises:
        Exception: whatever mlx-lm raises for layers that cannot be dealt out like this.
    """
    stack = next(m for _, m in network.named_modules() if hasattr(m, "pipeline_rank"))
    starts = tuple(_start(stack, Seat(rank, group.size())) for rank in range(group.size()))
    stack.pipeline(group)
    stage = Stage(group.rank(), starts, group)
    end = ForwardEnd(stack.norm, group, is_eager=True)
    _share_logits(network, stage, end)
    return stage, end


def _start(stack: nn.Module, seat: Seat) -> int:
    """Return how many layers run before those of a rank; the stack stays as it is."""
    dealt = copy.copy(stack)
    dealt.pipeline(seat)
    start: int = dealt.start_idx
    return start


def parts_to_read(network: nn.Module, stage: Stage) -> list[mx.array]:
    """Return the weights besides those of layers that a rank ever reads.

    Only the first stage reads the embedding, and the last one the output layer. Rank 0 has both,
    because heads borrow them.
    """
    if stage.rank == 0:
        return arrays_of(network)
    plain = Target(network, speculate=False)
    unread = [output_layer(network, plain.vocab_size)]
    if stage.start:
        unread.append(plain.embedding)
    skipped = {id(array) for module in unread if module for array in arrays_of(module)}
    return [array for array in arrays_of(network) if id(array) not in skipped]


def _share_logits(network: nn.Module, stage: Stage, end: ForwardEnd) -> None:
    """Let the others see rank 0's logits in the self check, and never compute any themselves.

    All ranks then find the same, and go on alike.
    """
    plain_target = Target(network, speculate=False)
    layer = output_layer(network, plain_target.vocab_size)

    def share(plain: Any, module: nn.Module, x: mx.array) -> mx.array:
        logits: mx.array = plain(module, x)
        if stage.rank:  # of the same type, and without any weights being read
            logits = mx.zeros(logits.shape, logits.dtype)
        if end.is_in_step:
            logits = mx.distributed.all_sum(mx.depends([logits], [x])[0], group=stage.group)
            mx.eval(logits)
        return logits

    if layer is None:
        wrap_method(plain_target.embedding, "as_linear", share)
    else:
        wrap_method(layer, "__call__", share)


def arrays_of(module: nn.Module) -> list[mx.array]:
    """Return the weights of a module; layers of other ranks have none."""
    arrays = dict(tree_flatten(module.parameters())).values()
    return [array for array in arrays if isinstance(array, mx.array)]
