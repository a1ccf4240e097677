"""Another process is asked to try the few-row kernels: if it dies or hangs, nothing is lost."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.errors import EagleError
from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.kernels.shapes import DTYPES, MOST_ROWS, Shape
from mlx_eagle.kernels.sites import Site, multiplies_in
from mlx_eagle.kernels.trial import ROWS as ROWS_TRIED
from mlx_eagle.kernels.verdicts import Table, from_fields
from mlx_eagle.target.attention_hook import Call, wrap_attention
from mlx_eagle.target.hooks import Undo, wrap_method
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

TIME_LIMIT = 90  # seconds, most of them for reading the weights from a disk
N_SITES = 6  # of each shape: more weights than any cache of a GPU holds, in models that matter
N_PREFIX = 33  # tokens before the rows
REQUEST, ACTIVATIONS, ANSWER = "request.json", "activations.safetensors", "answer.json"


class Request(NamedTuple):
    """What is to be tried.

    Attributes:
        sites: which of the model's sites have each shape.
        rows: [1, 16, K] activations of the model for each shape.
        heads: kinds of attention of the model.
    """

    sites: dict[Shape, list[int]]
    rows: dict[Shape, mx.array]
    heads: list[Heads]


def capture(target: Target, sites: list[Site]) -> Request:
    """Run a few tokens through a target and keep what its sites and its attention are given."""
    chosen: dict[Shape, list[int]] = {}
    for index, site in enumerate(sites):
        chosen.setdefault(site.shape, []).append(index)
    chosen = {shape: _spread(found) for shape, found in chosen.items()}
    middle = {shape: sites[found[len(found) // 2]] for shape, found in chosen.items()}
    rows: dict[Shape, mx.array] = {}
    heads: set[Heads | None] = set()
    hooks = [_keep_rows(site, rows) for site in middle.values()]
    hooks += wrap_attention(target.model, lambda *call: heads.add(Call(*call).heads))
    try:
        n_tokens = target.vocab_size or 1000
        ids = [(7919 * i + 11) % n_tokens for i in range(N_PREFIX + MOST_ROWS)]
        cache = target.make_cache()
        target.extend(mx.array(ids[:N_PREFIX], dtype=mx.int32), cache)
        tree = DraftTree.chain(mx.array(ids[N_PREFIX:], dtype=mx.int32))
        mx.eval(target.verify(tree, cache).logits)
    finally:
        while hooks:
            hooks.pop()()
    # Layers that are not given [1, 16, K] in their own type cannot be served.
    usable = {
        s: x
        for s, x in rows.items()
        if x.shape == (1, MOST_ROWS, s.k) and x.dtype == DTYPES[s.dtype]
    }
    served = [h for h in heads if h and any(h.refusal(n) is None for n in ROWS_TRIED)]
    return Request({shape: chosen[shape] for shape in usable}, usable, served)


def ask(
    request: Request, folder: Path, dtype: str | None, adapter: str | None, *, is_timed: bool
) -> Table:
    """Let another process try the kernels.

    Args:
        request: what to try.
        folder: the target.
        dtype: with which it was loaded.
        adapter: with which it was loaded.
        is_timed: False takes what is right, however slow it is.

    Raises:
        EagleError: in one line, if that process does not answer in time, or dies.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-eagle-") as name:
        place = Path(name)
        shapes = list(request.sites)
        asked = {
            "folder": str(folder.absolute()),
            "dtype": dtype,
            "adapter": adapter,
            "is_timed": is_timed,
            "heads": [found._asdict() for found in request.heads],
            "shapes": [{**s._asdict(), "sites": request.sites[s]} for s in shapes],
        }
        (place / REQUEST).write_text(json.dumps(asked))
        rows = {str(i): request.rows[shape] for i, shape in enumerate(shapes)}
        mx.save_safetensors(str(place / ACTIVATIONS), rows)
        _run(place)
        return from_fields(json.loads((place / ANSWER).read_text()))


def command(place: Path) -> list[str]:
    """Return the program that reads the request in a folder and writes its answer there."""
    return [sys.executable, "-m", "mlx_eagle.calibration.kernel_trial", str(place)]


def _run(place: Path) -> None:
    """Run the trial; raise an error in one line if it does not end well."""
    try:
        ended = subprocess.run(command(place), capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise EagleError(f"trying them took more than {TIME_LIMIT} s") from error
    except OSError as error:
        raise EagleError(f"trying them failed ({error.strerror})") from error
    if ended.returncode or not (place / ANSWER).is_file():
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"status {ended.returncode}" if ended.returncode >= 0 else "a crash"
        raise EagleError(f"trying them ended with {how} ({' '.join(last.split())[:200]})")


def _spread(found: list[int]) -> list[int]:
    """Return some of the sites, the first and the last among them."""
    if len(found) <= N_SITES:
        return found
    step = (len(found) - 1) / (N_SITES - 1)
    return [found[round(i * step)] for i in range(N_SITES)]


def _keep_rows(site: Site, rows: dict[Shape, mx.array]) -> Undo:
    """Let a site keep what it is given."""

    def note(plain: object, self: object, x: mx.array) -> mx.array:
        rows[site.shape] = x
        return plain(self, x)  # type: ignore[operator, no-any-return]

    return wrap_method(site.entrance, multiplies_in(site.entrance), note)
