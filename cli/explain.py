"""`mlx-eagle explain`: one round as an SVG picture; an answer is generated until it has it."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mlx_eagle.cli.option_types import TreeSizes
from mlx_eagle.cli.options import ModelSource, as_keywords, model_options
from mlx_eagle.errors import EagleError
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.tree_shape import TreeShape

if TYPE_CHECKING:
    from mlx_eagle.cli.round_picture import Token
    from mlx_eagle.engine import Engine
    from mlx_eagle.session.responses import DraftedTree, GenerationResponse

EXAMPLES = """\b
Examples:
  mlx-eagle explain --svg round.svg
  mlx-eagle explain --svg round.svg --prompt "What does zip do?" --round 3
  mlx-eagle explain --svg round.svg --model my-model --head my-head --tree 3x2x6
"""
PROMPT = "What is the signature of shutil.copyfile?"
# By the algorithm of a head, or of what stands in its place: what its drafts are made from.
READS = {
    "draft-model": "the tokens of the text, read by a small model of its own",
    "medusa": "the target's final state before the root; one head for each depth",
    "eagle": "the target's final states and the token after each; then its own states",
    "eagle3": "the target's states at some depths and the token after each; then its own states",
    "ngram": "the text itself: what followed the same tokens before",
    "joined": "what the head reads, and what followed the same tokens in the text before",
}
TREE = TreeShape(4, 2, 8)  # large enough for branches, small enough to be read
MOST_TOKENS = 128  # of the answer whose rounds are looked through


class Explained(NamedTuple):
    """A round as a picture needs it.

    Attributes:
        answer: the tokens of the answer before the round's root.
        tree: what was drafted, and what of it was accepted.
        next_token: the target's own token after it.
    """

    answer: list[int]
    tree: "DraftedTree"
    next_token: int

    @property
    def is_telling(self) -> bool:
        """Whether branches were drafted, and some of their tokens accepted and others not."""
        n_drafted, n_accepted = len(self.tree.tokens) - 1, len(self.tree.path) - 1
        has_branches = len(set(self.tree.parents[1:])) < n_drafted
        return has_branches and 2 <= n_accepted < n_drafted


@click.command("explain", epilog=EXAMPLES)
@click.option(
    "--svg",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the picture is written, as SVG.",
)
@click.option("--prompt", "-p", default=PROMPT, show_default=True, help="What is answered.")
@click.option(
    "--tree",
    "shape",
    type=TreeSizes(),
    metavar="DxWxN",
    help=f"The tree that is drafted: depth, width, drafted tokens. Default: {TREE.text}, or what "
    "of it target and head can do.",
)
@click.option(
    "--round",
    "number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw the N-th round that drafts. Default: the first that shows branches, some tokens of "
    "which were accepted and others not.",
)
@model_options
def command(
    file: Path, prompt: str, shape: TreeShape | None, number: int | None, source: ModelSource
) -> None:
    """Draw one round: what the head drafted, how sure it was, and what the target made of it."""
    from mlx_eagle.cli.generate import load_engine, to_messages
    from mlx_eagle.cli.round_picture import draw_round
    from mlx_eagle.cli.terminal.display import terminal

    if not file.absolute().parent.is_dir():
        raise click.UsageError(f"--svg {file}: there is no folder {file.parent}")
    engine = load_engine(source.with_loading(calibrate=False), terminal(stderr=True))
    if engine.head is None:
        raise EagleError(f"there is no round to draw: speculation is {engine.info.speculation}")
    settings = GenerationOptions(max_tokens=MOST_TOKENS, tree=shape or default_tree(engine))
    stream = engine.stream_generate(to_messages(prompt, None), **as_keywords(settings))
    with closing(stream):
        chosen = choose_round(list_rounds(stream), number)
    before = engine.tokenizer.decode(chosen.answer)
    reads = READS.get(engine.head.config.algorithm, "")
    write(file, draw_round(f"{prompt}\n{before}", to_tokens(chosen, engine), reads))
    click.echo(file)


def default_tree(engine: "Engine") -> TreeShape:
    """Return TREE, or what of it the target can verify and the head can draft."""
    depth = min(TREE.depth, engine.planners.max_depth)
    return TreeShape.complete(depth, 1 if engine.target.chains_only else TREE.width)


def list_rounds(stream: Iterable["GenerationResponse"]) -> Iterator[Explained]:
    """Yield the rounds of an answer that drafted, but for one that the answer's end cut short."""
    answer: list[int] = []
    tree: DraftedTree | None = None
    n_before = 0
    for response in stream:
        if response.tree is not None:
            tree, n_before = response.tree, len(answer) - 1  # the root is of the round
        answer.append(response.token)
        if tree is not None and not response.from_draft:
            yield Explained(answer[:n_before], tree, response.token)
            tree = None


def choose_round(rounds: Iterator[Explained], number: int | None) -> Explained:
    """Return the round with a number, else the first that is telling, else the best there is.

    Raises:
        EagleError: if there is none.
    """
    seen: list[Explained] = []
    for explained in rounds:
        seen.append(explained)
        if len(seen) == number or (number is None and explained.is_telling):
            return explained
    if number is not None or not seen:
        raise EagleError(
            f"there is no round {number or 1} to draw: the answer had {len(seen)} that drafted "
            "(another --prompt may have more)"
        )
    return max(seen, key=lambda explained: len(explained.tree.path))


def to_tokens(explained: Explained, engine: "Engine") -> list["Token"]:
    """Return the tokens of a round as the picture shows them; the target's own comes last."""
    from mlx_eagle.cli.round_picture import Kind, Token

    tree = explained.tree
    kinds = [
        Kind.ACCEPTED if node in tree.path else Kind.REJECTED for node in range(len(tree.tokens))
    ]
    texts = [engine.tokenizer.decode([token]) for token in (*tree.tokens, explained.next_token)]
    drafted = map(Token, texts, tree.parents, kinds, tree.confidences())
    root = Token(texts[0], 0, Kind.ROOT)
    return [root, *list(drafted)[1:], Token(texts[-1], tree.path[-1], Kind.TARGET)]


def write(file: Path, picture: str) -> None:
    """Write the picture whole or not at all; an older one is replaced."""
    from mlx_eagle.files.atomic import new_file

    with new_file(file) as partial:
        partial.write_text(picture, encoding="utf-8")
