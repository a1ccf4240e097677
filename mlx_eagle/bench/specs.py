"""How the command line names a contestant; nothing is loaded here."""

from typing import NamedTuple

from mlx_eagle.sampling.options import ACCEPTANCE, MATCH, TYPICAL
from mlx_eagle.static_tree import MEASURED, PUBLISHED, Tree, parse_tree
from mlx_eagle.tree import TreeShape

STOCK = "mlx-lm"  # its own plain decoding
PLAIN = "plain"  # always takes part: speeds are measured, and texts compared, against it
OF_HEAD = ":head:"  # stands between a tree and whose it is
MAX_DRAFT = 32  # tokens that a draft model may draft per round

FORMS = {
    PLAIN: "this target without drafting, through the same loop",
    "auto": "every round's tree as the engine chooses",
    "chain:N": "a chain of N tokens every round",
    "tree:DxWxN": "a tree D deep and W wide with N nodes every round; or of a fixed structure, "
    "eagle1, mc_sim_7b_63 or of Medusa heads static:N",
    "head:HEAD": "another head for the same target, in a folder or on the hub; draft:NAME, ngram, "
    "HEAD+ngram",
    "chain:N:head:HEAD, tree:DxWxN:head:HEAD": "one tree every round, of another head",
    "draft-model:MODEL[:N]": "mlx-lm's speculative decoding with a small model; N tokens, else 2",
    "ratio:SPEC": "one of these whose drafts are accepted by ratio (see --acceptance)",
    "typical:SPEC": "the same by typical acceptance, which is lossy",
    STOCK: "mlx-lm's own plain decoding",
}


class Spec(NamedTuple):
    """A contestant as the user named it.

    Attributes:
        name: the whole specification.
        kind: what stands before its first colon.
        shape: of a chain or tree.
        source: the head or draft model; "" is the engine's own head.
        n_draft: tokens that a draft model drafts per round.
        rule: by which drafts are accepted where tokens are drawn.
    """

    name: str
    kind: str
    shape: Tree | None = None
    source: str = ""
    n_draft: int = 0
    rule: str = MATCH

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name} (lossy)" if self.rule == TYPICAL else self.name

    @property
    def needs_head(self) -> bool:
        """Whether it drafts with the head that belongs to the engine."""
        return self.kind in ("auto", "chain", "tree") and not self.source


def parse_spec(name: str) -> Spec:
    """Return what a specification means.

    Raises:
        ValueError: if it means nothing; the message lists the forms.
    """
    kind, _, rest = name.partition(":")
    try:
        if name in (PLAIN, "auto", STOCK):
            return Spec(name, kind)
        if kind in ("chain", "tree"):
            shape, of, source = rest.partition(OF_HEAD)
            if of and not source:
                raise ValueError("it names no head")
            return Spec(name, kind, _parse_shape(kind, shape), source)
        if kind == "head" and rest:
            return Spec(name, kind, source=rest)
        if kind in ACCEPTANCE:
            return _parse_rule(name, kind, rest)
        if kind == "draft-model" and rest:
            return _parse_draft_model(name, rest)
    except ValueError as error:
        raise ValueError(f"{name!r} is not a contestant ({error}); {_forms()}") from error
    raise ValueError(f"{name!r} is not a contestant; {_forms()}")


def parse_specs(names: tuple[str, ...]) -> list[Spec]:
    """Return the contestants of a run: plain decoding first, then each one that was named, once.

    Raises:
        ValueError: if a name means nothing.
    """
    return [parse_spec(name) for name in dict.fromkeys((PLAIN, *(names or ("auto",))))]


def _parse_rule(name: str, rule: str, rest: str) -> Spec:
    """Return the specification of a contestant of ours that accepts by another rule."""
    spec = parse_spec(rest)
    if not spec.needs_head and spec.kind != "head":
        raise ValueError(f"{rest} does not draft through our own loop")
    return spec._replace(name=name, rule=rule)


def _parse_shape(kind: str, text: str) -> Tree:
    """Return the tree of every round."""
    if kind == "chain":
        return TreeShape.chain(_count(text))
    if text in PUBLISHED or text.startswith(MEASURED):
        return parse_tree(text)
    depth, width, nodes = (_count(part) for part in text.split("x"))
    return TreeShape(depth, width, nodes)


def _parse_draft_model(name: str, rest: str) -> Spec:
    """Return the specification of a draft model, whose number of tokens may follow a colon."""
    source, colon, count = rest.rpartition(":")
    if not colon or not count.isdigit():
        return Spec(name, "draft-model", source=rest, n_draft=2)
    if not 1 <= int(count) <= MAX_DRAFT:
        raise ValueError(f"a draft model drafts 1 to {MAX_DRAFT} tokens, not {count}")
    return Spec(name, "draft-model", source=source, n_draft=int(count))


def _count(text: str) -> int:
    """Return a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a number above 0")
    return int(text)


def _forms() -> str:
    return "there are " + ", ".join(FORMS)
