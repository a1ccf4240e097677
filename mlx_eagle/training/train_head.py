"""A head from texts: the steps of `mlx-eagle train`, each of which returns one value.

read the target -> read the texts -> choose the draft vocabulary -> compute features -> make or
load a head -> train it -> write it. Everything is kept in one folder, and what is there already is
not done again: the same command goes on where an earlier one stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.errors import EagleError
from mlx_eagle.files.json_files import language_config
from mlx_eagle.files.plain_files import hash_file
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head, load_head
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.session.limits import model_context_length
from mlx_eagle.session.prompt import Template
from mlx_eagle.target.load import load_target, precision
from mlx_eagle.target.target import Target
from mlx_eagle.training.batch import Example
from mlx_eagle.training.checkpoint import load_checkpoint
from mlx_eagle.training.corpus import Corpus, read_corpus
from mlx_eagle.training.draft_vocabulary import count_tokens, draft_vocabulary
from mlx_eagle.training.feature_source import ComputedFeatures, FeatureSource
from mlx_eagle.training.feature_store import FeatureStore, contents_of
from mlx_eagle.training.features import compute, tap_for_features
from mlx_eagle.training.loop import Outcome, Run, train
from mlx_eagle.training.memory import check_memory, estimate_memory
from mlx_eagle.training.mixed_precision import in_precision
from mlx_eagle.training.new_head import TargetSizes, make_head, unfreeze_weights
from mlx_eagle.training.objectives import make_objective
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions
from mlx_eagle.training.processes import Processes
from mlx_eagle.training.reports import Measurement, UpdateReport
from mlx_eagle.training.row_data import RowData, Texts
from mlx_eagle.training.run_folder import RunFolder
from mlx_eagle.training.target_answers import Respondent
from mlx_eagle.training.teacher import Teacher
from mlx_eagle.training.write_head import write_trained


@dataclass(frozen=True)
class Recipe:
    """What a head is made of.

    Attributes:
        target: folder of the target.
        files: the texts.
        heldout: texts to measure on; () holds out a share of the others.
        out: folder in which everything is kept, the head in the end.
        features: folder for the target's features, which several trainings may share; None keeps
            them in `out`.
        data: how the texts are used.
        head: what kind of head it is.
        loop: how its weights are found.
        start: folder of a head to go on with, converted or as published; None makes a new one.
        head_bits: 4 or 8 to quantize the head that is written for decoding, None not to.
        adapter: a LoRA adapter to put on the target.
        template_args: what the chat template is given besides the messages.
        memory_limit: bytes that training may take; None is not limited.
    """

    target: Path
    files: Sequence[Path]
    out: Path
    heldout: Sequence[Path] = ()
    features: Path | None = None
    data: DataOptions = field(default_factory=DataOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    start: Path | None = None
    head_bits: int | None = 4
    adapter: Path | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    memory_limit: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what decides the weights, to compare a folder's with."""
        texts = {file.name: hash_file(file) for file in self.files}
        heldout = {file.name: hash_file(file) for file in self.heldout}
        loop = asdict(self.loop)
        del loop["save_every"]
        return {
            "target": str(self.target),
            "adapter": str(self.adapter) if self.adapter else None,
            "texts": texts,
            "heldout": heldout,
            "start": str(self.start) if self.start else None,
            "template_args": self.template_args,
            "data": asdict(self.data),
            "head": asdict(self.head) | {"taps": list(self.head.taps)},
            "loop": loop,
        }


class Watch(NamedTuple):
    """Who is told how far a training is.

    Attributes:
        progress: called with (what is done, done, in all): texts, answers, features in tokens.
        remark: called with a line about the data.
        report: called after each update and each measurement.
    """

    progress: Callable[[str, int, int], None]
    remark: Callable[[str], None]
    report: Callable[[UpdateReport | Measurement], None]


SILENT = Watch(lambda what, done, total: None, lambda line: None, lambda report: None)


class _ReadTarget(NamedTuple):
    """The target as training reads it."""

    target: Target
    tokenizer: Any
    facts: TargetFacts
    sizes: TargetSizes
    teacher: Teacher
    identity: str
    max_context: int | None


def train_head(recipe: Recipe, watch: Watch, *, prepare: bool = False) -> Outcome:
    """Train a head, or go on with it.

    Args:
        recipe: what it is made of.
        watch: who is told.
        prepare: stop before the first update, when answers and features are there.

    Raises:
        EagleError: if something that was asked for cannot be had or used together; the message says
            what. Whatever was complete is kept.
    """
    processes = Processes.joined()
    watch = watch if processes.is_first else SILENT
    folder = _open_folder(recipe, processes)
    read = _read_target(recipe)
    corpus = _read_texts(recipe, read, folder, watch, processes)
    head, options = _make_or_load_head(recipe, read, corpus, watch)
    _check_room(recipe, head, options)
    data = _prepare_data(recipe, read, head, corpus, folder, watch, processes)
    if prepare:
        return Outcome(0, is_interrupted=False, is_first=processes.is_first)
    run = Run(
        head=head,
        objective=in_precision(
            make_objective(head, read.teacher, options, recompute=recipe.loop.recompute),
            head,
            _compute_type(recipe.loop),
        ),
        data=data,
        options=recipe.loop,
        n_updates=data.n_updates,
        folder=folder,
        fingerprint=folder.options() | {"processes": processes.size, "updates": data.n_updates},
        watch=watch.report,
        processes=processes,
    )
    outcome = train(run)
    if processes.is_first and not outcome.is_interrupted:
        _write_best(recipe, read, run)
    return outcome


def _open_folder(recipe: Recipe, processes: Processes) -> RunFolder:
    """Return the folder of a training, made or found.

    Raises:
        EagleError: if it holds a training of something else.
    """
    about = json.loads(json.dumps(recipe.as_json()))
    if processes.is_first and not recipe.out.exists():
        RunFolder.create(recipe.out, about)
    processes.total([0.0])  # the others wait for the first
    folder = RunFolder.open(recipe.out)
    if other := _first_difference(folder.options(), about):
        raise EagleError(
            f"{recipe.out} holds a training with another {other}: give the same options and data "
            "to go on with it, or another --out"
        )
    return folder


def _first_difference(found: dict[str, Any], wanted: dict[str, Any], path: str = "") -> str:
    """Return which entry of two JSON objects differs first, and how, or ""."""
    for name in dict.fromkeys([*wanted, *found]):
        theirs, ours = found.get(name), wanted.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            if inner := _first_difference(theirs, ours, f"{path}{name}."):
                return inner
        elif theirs != ours:
            return f"{path}{name} ({theirs!r}, now {ours!r})"
    return ""


def _read_target(recipe: Recipe) -> _ReadTarget:
    """Load the target and find out what training needs of it."""
    facts = read_target_facts(recipe.target)
    loaded, tokenizer = load_target(recipe.target, adapter=recipe.adapter)
    target = Target(loaded.network)
    embedding = target.embedding(mx.array([0]))
    sizes = TargetSizes(
        embedding.shape[-1],
        facts.vocab_size,
        len(loaded.network.layers),
        language_config(loaded.config),
    )
    context = loaded.max_context or model_context_length(loaded.config)
    identity = f"{facts.name} {facts.config_sha256[:16]} {precision(loaded.network)}"
    if recipe.adapter is not None:
        identity += f" {recipe.adapter.name}"
    return _ReadTarget(target, tokenizer, facts, sizes, Teacher.of(target), identity, context)


def _read_texts(
    recipe: Recipe, read: _ReadTarget, folder: RunFolder, watch: Watch, processes: Processes
) -> Corpus:
    """Return the texts; where several processes train, the first one lets the target answer."""
    respondent = Respondent(
        read.target.model,
        read.tokenizer,
        read.identity,
        read.max_context,
        recipe.data,
        recipe.loop.seed,
        Template(recipe.template_args),
    )
    if not processes.is_first:
        processes.total([0.0])
    corpus = read_corpus(recipe.files, recipe.heldout, respondent, folder.path, watch.progress)
    if processes.is_first:
        processes.total([0.0])
        for remark in corpus.remarks:
            watch.remark(remark)
    return corpus


def _make_or_load_head(
    recipe: Recipe, read: _ReadTarget, corpus: Corpus, watch: Watch
) -> tuple[Head, HeadOptions]:
    """Return the head before its first update, and the options that it is trained with."""
    mx.random.seed(recipe.loop.seed)
    if recipe.start is not None:
        folder = prepare_head(recipe.start, recipe.target, bits=None, notify=watch.remark)
        head, options = _started(load_head(folder), read, recipe)
    else:
        n_wanted = recipe.data.draft_vocab if recipe.head.algorithm == "eagle3" else None
        counts = count_tokens(corpus.train, read.sizes.vocab_size)
        vocabulary = draft_vocabulary(counts, n_wanted, read.tokenizer)
        watch.remark(
            f"draft vocabulary: {len(vocabulary.ids)} of {read.sizes.vocab_size} tokens, "
            f"{vocabulary.coverage:.1%} of what is trained on"
        )
        options = recipe.head
        head = make_head(options, read.sizes, mx.array(vocabulary.ids), read.teacher)
    unfreeze_weights(head)
    mx.eval(head.parameters())
    return head, options


def _started(head: Head, read: _ReadTarget, recipe: Recipe) -> tuple[Head, HeadOptions]:
    """Return a head to go on with, in float32, and the options of its own kind.

    Raises:
        EagleError: if it is quantized, of a kind that is not trained, or of another target.
    """
    if any(name.endswith(".scales") for name, _ in tree_flatten(head.parameters())):
        raise EagleError(
            f"{recipe.start} is quantized, so its weights cannot be trained: give the head as it "
            "was before (of a training, its folder head-full), or convert it with --head-bits none"
        )
    config = head.config
    if config.algorithm == "p-eagle":
        raise EagleError(
            "P-EAGLE heads are not trained here; EAGLE-3, EAGLE-1 and Medusa heads are"
        )
    ours = (read.sizes.hidden_size, read.sizes.vocab_size)
    if (config.target_hidden_size, config.target_vocab_size) != ours:
        raise EagleError(
            f"{recipe.start} is a head for a target of width {config.target_hidden_size} with "
            f"{config.target_vocab_size} tokens; this one has width {ours[0]} and {ours[1]} tokens"
        )
    head.set_dtype(mx.float32)
    named = recipe.head.algorithm
    algorithm = named if config.algorithm == "eagle" and named == "hass" else config.algorithm
    kept = asdict(recipe.head) | {"algorithm": algorithm, "taps": tuple(config.taps)}
    return head, HeadOptions(**kept)


def _check_room(recipe: Recipe, head: Head, options: HeadOptions) -> None:
    """Refuse a training that will not fit into memory."""
    if recipe.memory_limit is not None:
        shapes = {name: w.shape for name, w in tree_flatten(head.trainable_parameters())}
        estimate = estimate_memory(head.config, shapes, recipe.data, options, recipe.loop)
        check_memory(estimate, recipe.memory_limit, recipe.loop)


def _prepare_data(
    recipe: Recipe,
    read: _ReadTarget,
    head: Head,
    corpus: Corpus,
    folder: RunFolder,
    watch: Watch,
    processes: Processes,
) -> RowData:
    """Return batches with features, which are computed first where they are kept on the disk."""
    taps = head.config.taps if isinstance(head, EagleHead) and head.config.fuse_taps else ()
    twin = tap_for_features(read.target, taps)
    loop, texts = recipe.loop, []
    kept = recipe.features or folder.path / "features"
    for name, examples in (("train", corpus.train), ("heldout", corpus.heldout)):
        if not examples:
            texts.append(None)
            continue
        source = _features(recipe, read, twin, examples, kept / name, watch, processes)
        n_rows = loop.batch * processes.size
        seed = loop.seed if name == "train" else 0
        dtype = _compute_type(loop)
        texts.append(Texts(examples, source, recipe.data.length, dtype, n_rows, seed))
    assert texts[0] is not None, "there is something to train on"
    return RowData(texts[0], texts[1], loop, processes)


def _features(
    recipe: Recipe,
    read: _ReadTarget,
    twin: Target,
    examples: list[Example],
    folder: Path,
    watch: Watch,
    processes: Processes,
) -> FeatureSource:
    """Return the features of texts."""
    if recipe.data.features == "compute":
        return ComputedFeatures(examples, partial(compute, twin))
    contents = contents_of(twin, read.identity, examples)
    if processes.is_first:
        store = FeatureStore(folder, contents)
        for line in store.damaged:
            watch.remark(line)
        if not store.is_complete:
            watch.remark(f"features of {folder.name}: {store.n_bytes / 1e9:.2f} GB on disk")
        store.complete(partial(compute, twin), partial(watch.progress, "features"))
    store = FeatureStore(folder, contents)
    while not store.is_complete:  # another process is computing: waiting in MLX would keep a core
        time.sleep(1)
        store = FeatureStore(folder, contents)
    return store


def _compute_type(loop: LoopOptions) -> mx.Dtype:
    """Return the type that is computed in."""
    is_gpu = mx.default_device() != mx.Device(mx.cpu)
    if loop.precision == "auto":
        return mx.bfloat16 if is_gpu else mx.float32
    return mx.bfloat16 if loop.precision == "bfloat16" else mx.float32


def _write_best(recipe: Recipe, read: _ReadTarget, run: Run) -> None:
    """Write the weights that were measured best, or the last ones where nothing was measured."""
    best = load_checkpoint(run.folder.best, run.fingerprint)
    measured: dict[str, Any] = {"update": run.n_updates}
    if best is not None:
        run.head.load_weights(list(best.weights.items()), strict=False)
        measured = {"update": best.update} | best.measured
    about = {"options": run.folder.options(), "measured": measured}
    assert isinstance(run.head, Head), "it was made or loaded here"
    write_trained(run.head, read.facts, recipe.out, recipe.head_bits, about)
