"""What a head is made of, and who is told how far that is: the words of `train_head`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.files.folders import find_weights, source_name
from mlx_eagle.files.plain_files import check_file, hash_file
from mlx_eagle.files.sampled_hash import sampled_hash
from mlx_eagle.target.adapters import FILES
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions

if TYPE_CHECKING:
    from mlx_eagle.training.plan import Plan
    from mlx_eagle.training.run.reports import Measurement, UpdateReport

MODELS = ("target", "adapter", "start")  # what a head is made from, besides texts
Progress = Callable[[str, int, int, float], None]


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
        memory_limit: bytes that target and training may take; None is not limited.
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

    def refuse_idle_options(self, algorithm: str) -> None:
        """Refuse what has no effect on heads of a kind, so that nobody believes it has.

        Raises:
            EagleError: naming the options.
        """
        if algorithm == "eagle3":
            return
        idle = {
            "--recompute": self.loop.recompute,
            "--feature-weight": self.head.feature_weight > 0,
            "--norms": self.head.norms != "eagle3",
        }
        if given := [name for name, is_given in idle.items() if is_given]:
            raise EagleError(
                f"{', '.join(given)}: only EAGLE-3 heads are trained with that, and this is "
                f"{algorithm}; leave it out"
            )

    def as_json(self) -> dict[str, Any]:
        """Return what decides the weights, to compare a folder's with.

        Raises:
            EagleError: if the target or the head to go on with has no weights.
        """
        loop = asdict(self.loop)
        del loop["save_every"]
        return {
            "target": str(self.target),
            "adapter": str(self.adapter) if self.adapter else None,
            "texts": _hashes(self.files),
            "heldout": _hashes(self.heldout),
            "start": str(self.start) if self.start else None,
            "contents": {
                "target": model_contents(self.target),
                "adapter": adapter_contents(self.adapter) if self.adapter else None,
                "start": model_contents(self.start) if self.start else None,
            },
            "template_args": self.template_args,
            "data": asdict(self.data),
            "head": asdict(self.head) | {"taps": list(self.head.taps)},
            "loop": loop,
        }


def to_publish(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Recipe.as_json` gives without this machine's paths: heads are passed on."""
    named = {key: options[key] and source_name(Path(options[key])) for key in MODELS}
    texts = {key: _without_folders(options[key]) for key in ("texts", "heldout")}
    return dict(options) | named | texts


def model_contents(folder: Path) -> str:
    """Return what tells a model's configuration and weights from others.

    Raises:
        EagleError: if it has no weights or no configuration.
    """
    check_file(folder / "config.json")
    return sampled_hash([folder / "config.json", *find_weights(folder)])


def adapter_contents(folder: Path) -> str:
    """Return what tells a LoRA adapter's configuration and weights from others."""
    return sampled_hash(file for name in FILES if (file := folder / name).is_file())


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """Return what files hold, by their names; by their paths where two have the same name."""
    names = [file.name for file in files]
    unique = {name for name in names if names.count(name) == 1}
    return {f.name if f.name in unique else str(f): hash_file(f) for f in files}


def _without_folders(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of files by name; those with the same name are told apart by their hash."""
    names = [Path(path).name for path in hashes]
    return {
        name if names.count(name) == 1 else f"{name} {digest[:8]}": digest
        for name, digest in zip(names, hashes.values(), strict=True)
    }


class Watch(NamedTuple):
    """Who is told how far a training is.

    Attributes:
        progress: called with what is done ("texts", "answers" or "features"), how many of them,
            in tokens where it is features, how many in all, and how many tokens a second, 0 where
            that is not known.
        remark: called with a line about the data.
        plan: called once with what will be trained, before features are computed.
        report: called after each update and each measurement.
    """

    progress: Progress
    remark: Callable[[str], None]
    plan: "Callable[[Plan], None]"
    report: "Callable[[UpdateReport | Measurement], None]"


SILENT = Watch(
    progress=lambda what, done, total, rate: None,
    remark=lambda line: None,
    plan=lambda plan: None,
    report=lambda report: None,
)
