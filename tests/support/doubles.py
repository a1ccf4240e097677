"""Stand-ins of the tests: scripted drafters and policies, tokenizers without a model, sessions."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.calibration.planners import Planners
from mlx_eagle.drafters.base import Drafter, Level
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.heads.ngram import JoinedHead, NgramHead, sources_of
from mlx_eagle.planner.policy import Outcome, Plan
from mlx_eagle.session.session import Session
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

# Of the likeliest tokens of a level; a planner asks for at most so many.
CONFIDENCES = [0.6, 0.3, 0.06, 0.04]


def always_right(position: int) -> int:
    return 255


def always_wrong(position: int) -> int:
    return 0


def wrong_every(n: int) -> Callable[[int], int]:
    """Return a rule by which every n-th token of the text is drafted wrong."""
    return lambda position: n - 1 - position % n


class ScriptedDrafter:
    """Drafts the text that it was told, of which as many tokens are right as a rule says.

    A tree is a greedy path with `width` children under each of its nodes, the last of which
    continues it, so that accepted nodes are seldom neighbours in the cache. Siblings are wrong.

    Args:
        truth: the tokens of the whole text; the test may change it.
        n_right: how many tokens of a greedy path are right, by the position of the root.
        vocabulary: how many tokens there are.
    """

    buffers: Sequence[mx.array] = ()
    nbytes = 0
    max_depth = 255

    def __init__(self, truth: list[int], n_right: Callable[[int], int], vocabulary: int) -> None:
        self.truth, self.n_right, self.max_width = truth, n_right, vocabulary
        self.rows = 0

    def observe(self, taps: mx.array | None, next_tokens: mx.array) -> None:
        self.rows += next_tokens.shape[0]

    def trim(self, rows: int) -> None:
        self.rows = rows

    def draft(self, root: mx.array, shape: TreeShape) -> DraftTree:
        tokens, parents = list[int](), [0]
        for level in self._levels(shape.depth, shape.width):
            children = level[-(shape.nodes - len(tokens)) :] if len(tokens) < shape.nodes else []
            parents += [len(tokens)] * len(children)
            tokens += children
        return DraftTree.static(mx.concatenate([root, mx.array(tokens, dtype=mx.int32)]), parents)

    def greedy_path(self, k: int, depth: int) -> Generator[Level]:
        """Every third level the path's token is the second likeliest, so the likeliest is wrong."""
        log_probs = mx.log(mx.array(CONFIDENCES[:k]))
        for level, tokens in enumerate(self._levels(depth, k)):
            ranked = tokens[::-1]
            if k > 1 and level % 3 == 2:
                ranked[:2] = ranked[1], ranked[0]
            yield log_probs, mx.array(ranked, dtype=mx.int32)

    def _levels(self, depth: int, width: int) -> list[list[int]]:
        """The tokens of every level, the greedy path's token last."""
        n_right, after = self.n_right(self.rows), self.truth[self.rows + 1 :][:depth]
        levels = list[list[int]]()
        for level, true in enumerate([*after, *[0] * (depth - len(after))]):
            path = true if level < n_right else true + width
            levels.append([(t % self.max_width) for t in (*range(true + 1, true + width), path)])
        return levels


class Cycle:
    """Another shape every round, plain rounds included."""

    def __init__(self, shapes: Sequence[TreeShape]) -> None:
        self.next = list(shapes)

    def plan(self, context: int) -> Plan:
        self.next = [*self.next[1:], self.next[0]]
        return Plan(self.next[-1])

    def stays_plain(self) -> bool:
        return self.next[0] == PLAIN

    def record(self, outcome: Outcome) -> None: ...


class NoMarks:
    """A tokenizer that knows no thoughts and no tools."""

    has_thinking = has_tool_calling = False

    def get_vocab(self) -> dict[str, int]:
        return {}


class NoText(NoMarks):
    """A tokenizer whose tokens are invisible."""

    bos_token = None
    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return ""

    def convert_ids_to_tokens(self, token: int) -> str:
        return ""


class ByteTokenizer(NoMarks):
    """One token per UTF-8 byte."""

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return bytes(tokens).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


class Letters(NoMarks):
    """A tokenizer of 128 ids for 29 letters: an answer is tokenized anew otherwise than it came.

    That is how tokenizers are, and a conversation must not reuse rows of other tokens.
    """

    letters = "abcdefghijklmnopqrstuvwxyz .,"
    end, system, user, assistant = 1, 2, 3, 4
    bos_token = None
    has_chat_template = True
    eos_token_ids = frozenset({end})

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(self.letters[token % len(self.letters)] for token in tokens)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.letters[token % len(self.letters)]

    def encode(self, text: str) -> list[int]:
        # All but one in seven letters come back as a token of the lower half.
        ids = [8 + (self.letters.index(letter) - 8) % 29 for letter in text]
        return [token + (29 if i % 7 == 0 else 0) for i, token in enumerate(ids)]

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool
    ) -> list[int]:
        roles = {"system": self.system, "user": self.user, "assistant": self.assistant}
        ids: list[int] = []
        for message in messages:
            ids += [roles[message["role"]], *self.encode(message["content"]), self.end]
        return [*ids, self.assistant]


def make_session(
    target: Target,
    make_drafter: Callable[[], Drafter] | None = None,
    planners: Planners | None = None,
) -> Session:
    """Return a conversation whose text nobody reads, without a drafter if none is made."""
    status = ON if make_drafter else Speculation.off("no head was given")
    info = EngineInfo("", "", "", "", status, "", False)
    engine = Engine(target, NoText(), None, info, planners)
    engine.make_drafter = make_drafter or (lambda: None)
    return engine.session()


def perturbed(model: nn.Module, share: float) -> nn.Module:
    """Return a model with noise of this share on its weights: it often says what it said before."""
    mx.random.seed(9)
    for layer in model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            scale = share * mx.sqrt(mx.mean(linear.weight**2))
            linear.weight = linear.weight + scale * mx.random.normal(linear.weight.shape)
    mx.eval(model.parameters())
    return model


def make_drafted_engine(
    model: nn.Module, draft: nn.Module, tokenizer: Any, *, has_lookup: bool = False
) -> Engine:
    """Return an engine of a tiny target for which another model drafts, lookup perhaps beside."""
    info = EngineInfo("tiny", "", "draft:tiny", "", ON, "", False)
    drafts = DraftModel(draft)
    head = JoinedHead(drafts) if has_lookup else drafts
    return Engine(Target(model), tokenizer, head, info, Planners(sources=sources_of(head)))


HEADS: dict[str, Callable[[EagleHead], AnyHead]] = {
    "head": lambda head: head,
    "ngram": lambda head: NgramHead(),
    "head+ngram": JoinedHead,
}


def make_engine(
    model: nn.Module, head_config: HeadConfig, tokenizer: Any, kind: str = "head"
) -> Engine:
    """Return an engine of a tiny random target and head.

    Args:
        model: of `build_target`.
        head_config: whose widths and vocabularies are replaced by the target's.
        tokenizer: with which texts are read.
        kind: what it drafts with, one of `HEADS`.
    """
    n_tokens, size = model.args.vocab_size, model.args.hidden_size
    sizes = {"hidden_size": size, "target_hidden_size": size}
    words = {"target_vocab_size": n_tokens, "draft_vocab_size": n_tokens}
    mx.random.seed(4)
    head = HEADS[kind](EagleHead(replace(head_config, **sizes, **words)))
    target = Target(model, taps=head.config.taps)
    info = EngineInfo("tiny", "", "tiny", "", ON, "", False)
    planners = Planners(chains_only=target.chains_only, sources=sources_of(head))
    return Engine(target, tokenizer, head, info, planners)
