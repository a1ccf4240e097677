"""A head from texts: the steps of `mlx-eagle train`, each of which returns one value.

read the target -> read the texts -> choose the draft vocabulary -> compute features -> make or
load a head -> train it -> write it. Everything is kept in one folder, and what is there already is
not done again: the same command goes on where an earlier one stopped.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import one_line
from mlx_eagle.heads.load import Head
from mlx_eagle.session.prompt import Template
from mlx_eagle.target.target import Target
from mlx_eagle.training.allocator import keep_freed_memory
from mlx_eagle.training.batch import Example
from mlx_eagle.training.features.compute import compute, tap_for_features, taps_of
from mlx_eagle.training.features.row_data import RowData, Texts
from mlx_eagle.training.features.source import ComputedFeatures, FeatureSource
from mlx_eagle.training.features.store import FeatureStore, bytes_text, contents_of
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.mixed_precision import in_precision
from mlx_eagle.training.options import HeadOptions, LoopOptions
from mlx_eagle.training.plan import plan_training
from mlx_eagle.training.read_target import ReadTarget, read_target
from mlx_eagle.training.recipe import SILENT, Recipe, Watch, to_publish
from mlx_eagle.training.run.checkpoint import load_checkpoint, newest_checkpoint
from mlx_eagle.training.run.folder import MEASUREMENTS, RunFolder
from mlx_eagle.training.run.loop import Outcome, Run, train
from mlx_eagle.training.run.processes import Processes
from mlx_eagle.training.start_head import first_head, head_to_go_on_with
from mlx_eagle.training.texts.corpus import Corpus, read_corpus
from mlx_eagle.training.texts.target_answers import Respondent
from mlx_eagle.training.write_head import FOR_DECODING, quantization_of, write_trained


class _Setting(NamedTuple):
    """What every step of a training is told.

    Attributes:
        recipe: what is asked for.
        folder: where everything is kept.
        watch: who is told.
        processes: who trains together.
    """

    recipe: Recipe
    folder: RunFolder
    watch: Watch
    processes: Processes


def train_head(
    recipe: Recipe,
    watch: Watch,
    *,
    prepare: bool = False,
    processes: Processes | None = None,
) -> Outcome:
    """Train a head, or go on with it.

    Args:
        recipe: what it is made of.
        watch: who is told.
        prepare: stop before the first update, when answers and features are there.
        processes: who trains together; None for those that `mlx.launch` has started, if it has.

    Raises:
        EagleError: if something that was asked for cannot be had or used together, or another of
            the processes that train together has failed; the message says what. Whatever was
            complete is kept.
    """
    processes = processes or Processes.joined()
    watch = watch if processes.is_first else SILENT
    keep_freed_memory()
    with _leaving_nothing_empty(recipe.out, processes), processes.ending_together():
        folder = _open_folder(recipe, processes)
        if (recipe.out / FOR_DECODING).exists():
            return Outcome(0, False, processes.is_first, was_finished=True)
        read = read_target(recipe)
        begun = head_to_go_on_with(recipe, read, watch)
        setting = _Setting(recipe, folder, watch, processes)
        corpus = _read_texts(setting, read)
        head, options = first_head(recipe, read, begun, corpus, watch)
        quantization_of(head, recipe.head_bits)  # what cannot be written later is refused now
        watch.plan(plan_training(recipe, read, head, options, corpus, processes.size))
        data = _prepare_data(setting, read, head, corpus)
        if prepare:
            return Outcome(0, False, processes.is_first)
        run, facts = _run(setting, read, head, options, data), read.facts
        del read  # what is not needed any more of the target need not stay in memory
        _say_where(folder, watch)
        outcome = train(run)
        if processes.is_first and not outcome.is_interrupted:
            _write_best(recipe, facts, run)
    return outcome


@contextmanager
def _leaving_nothing_empty(out: Path, processes: Processes) -> Iterator[None]:
    """Remove the folder of a training again if nothing came into it.

    It goes when the others were told: it holds the heartbeats of all.
    """
    try:
        yield
    finally:
        if processes.is_first and out.is_dir() and RunFolder(out).is_empty:
            # Processes that end remove their heartbeats at the same time.
            shutil.rmtree(out, ignore_errors=True)


def _open_folder(recipe: Recipe, processes: Processes) -> RunFolder:
    """Return the folder of a training, made or found.

    As long as no update was saved the options may change: answers and features know themselves
    what they are of.

    Raises:
        EagleError: if it holds a training of something else.
    """
    about = json.loads(json.dumps(recipe.as_json()))
    if processes.is_first and not recipe.out.exists():
        RunFolder.create(recipe.out, about)
    processes.meet()  # now the first one has made it
    folder = RunFolder.open(recipe.out)
    processes.keep_heartbeat(recipe.out)
    other = _first_difference(folder.options(), about)
    if other and _is_begun(folder):
        raise EagleError(
            f"{recipe.out} holds a training with another {other}: go on with the same options and "
            "data, or give another --out"
        )
    if other and processes.is_first:
        folder.replace_options(about)
    return folder


def _is_begun(folder: RunFolder) -> bool:
    """Say whether updates were saved, or a head was written."""
    saved = newest_checkpoint(folder.checkpoints) or newest_checkpoint(folder.best)
    return saved is not None or (folder.path / FOR_DECODING).exists()


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return which entry of two JSON objects differs first, and how, or ""."""
    for name in dict.fromkeys([*wanted, *found]):
        theirs, ours = found.get(name), wanted.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            if inner := _first_difference(theirs, ours):
                return inner
        elif theirs != ours:
            return f"{name} ({_shown(theirs)} there, {_shown(ours)} here)"
    return ""


def _shown(value: Any) -> str:
    """Return a value of options as a message shows it; of a file's hash the beginning tells."""
    return "absent" if value is None else one_line(value, 20)


def _read_texts(setting: _Setting, read: ReadTarget) -> Corpus:
    """Return the texts; where several processes train, the first one lets the target answer."""
    recipe, folder, watch, processes = setting
    respondent = Respondent(
        read.target.model,
        read.tokenizer,
        read.identity,
        read.max_context,
        recipe.data,
        recipe.loop.seed,
        Template(recipe.template_args),
    )
    with processes.first_before_others(folder.path / ".answers.working"):
        corpus = read_corpus(recipe.files, recipe.heldout, respondent, folder.path, watch.progress)
    for remark in corpus.remarks:
        watch.remark(remark)
    return corpus


def _run(
    setting: _Setting, read: ReadTarget, head: Head, options: HeadOptions, data: RowData
) -> Run:
    """Return the training."""
    recipe, folder, watch, processes = setting
    objective = make_objective(head, read.teacher, options, recompute=recipe.loop.recompute)
    return Run(
        head=head,
        objective=in_precision(objective, head, _compute_type(recipe.loop)),
        data=data,
        options=recipe.loop,
        n_updates=data.n_updates,
        folder=folder,
        fingerprint=folder.options()
        | {
            "processes": processes.size,
            "updates": data.n_updates,
            "target": read.identity,
            "computed in": str(_compute_type(recipe.loop)),
        },
        watch=watch.report,
        processes=processes,
    )


def _prepare_data(setting: _Setting, read: ReadTarget, head: Head, corpus: Corpus) -> RowData:
    """Return batches with features, which are computed first where they are kept on the disk."""
    recipe, folder, _, processes = setting
    twin = tap_for_features(read.target, taps_of(head))
    loop, texts = recipe.loop, list[Texts | None]()
    kept = recipe.features or folder.path / "features"
    for name, examples in (("train", corpus.train), ("heldout", corpus.heldout)):
        if not examples:
            texts.append(None)
            continue
        source = _features(setting, read, twin, examples, kept / name)
        n_rows = loop.batch * processes.size
        seed = loop.seed if name == "train" else 0
        dtype = _compute_type(loop)
        texts.append(Texts(examples, source, recipe.data.length, dtype, n_rows, seed))
    assert texts[0] is not None, "there is something to train on"
    return RowData(texts[0], texts[1], loop, processes)


def _features(
    setting: _Setting, read: ReadTarget, twin: Target, examples: list[Example], folder: Path
) -> FeatureSource:
    """Return the features of texts; where several processes train, the first one computes them.

    Raises:
        EagleError: if the others do not find them.
    """
    recipe, out, watch, processes = setting
    if recipe.data.features == "compute":
        return ComputedFeatures(examples, partial(compute, twin))
    contents = contents_of(twin, read.identity, examples)
    with processes.first_before_others(out.path / f".features-{folder.name}.working"):
        store = FeatureStore(folder, contents)
        if processes.is_first:
            _complete(store, twin, watch)
    if not store.is_complete:
        raise EagleError(
            f"the process of rank {processes.rank} does not find the features that the first one "
            f"has written to {folder}: --out and --features-in must be folders that all of them see"
        )
    return store


def _complete(store: FeatureStore, twin: Target, watch: Watch) -> None:
    """Compute the features that are missing, and say so."""
    for line in store.damaged:
        watch.remark(line)
    if not store.is_complete:
        _announce(store, watch)
    store.complete(
        partial(compute, twin), lambda done, total: watch.progress("features", done, total, 0)
    )


def _say_where(folder: RunFolder, watch: Watch) -> None:
    """Say from where a training goes on, if it was begun."""
    saved = newest_checkpoint(folder.checkpoints)
    if saved is None:
        return
    line = f"going on after update {int(saved.name.rpartition('-')[2])}"
    if rows := folder.rows(MEASUREMENTS):
        best = max(rows, key=lambda row: row["acceptance_length"])
        line += f"; best so far: length {best['acceptance_length']:.2f}, at update "
        line += f"{best['update']:.0f}"
    watch.remark(line)


def _announce(store: FeatureStore, watch: Watch) -> None:
    """Say how much of the disk features will take."""
    store.check_room()
    there = store.n_bytes - store.missing_bytes
    said = f", of which {bytes_text(there)} are there" if there else ""
    watch.remark(
        f"features of {len(store.contents.examples)} texts take {bytes_text(store.n_bytes)} on "
        f"disk, in {store.folder}{said}"
    )


def _compute_type(loop: LoopOptions) -> mx.Dtype:
    """Return the type that is computed in."""
    is_gpu = mx.default_device() != mx.Device(mx.cpu)
    if loop.precision == "auto":
        return mx.bfloat16 if is_gpu else mx.float32
    return mx.bfloat16 if loop.precision == "bfloat16" else mx.float32


def _write_best(recipe: Recipe, target: TargetFacts, run: Run) -> None:
    """Write the weights that were measured best, or the last ones where nothing was measured."""
    best = load_checkpoint(run.folder.best, run.fingerprint)
    measured: dict[str, Any] = {"update": run.n_updates}
    if best is not None:
        run.head.load_weights(list(best.weights.items()), strict=False)
        measured = {"update": best.update} | best.measured
    about = {"options": to_publish(run.folder.options()), "measured": measured}
    assert isinstance(run.head, Head), "it was made or loaded here"
    write_trained(run.head, target, recipe.out, recipe.head_bits, about)
