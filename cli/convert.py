"""`mlx-eagle convert`: ports PyTorch heads, Hugging Face targets and GGUF files to MLX."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

import click

from mlx_eagle.cli.terminal.display import (
    Loading,
    fetch_shown,
    fetch_target_shown,
    printable,
    terminal,
)
from mlx_eagle.convert.quantization import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    MODES,
    Quantization,
    choose_quantization,
)
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import ALGORITHMS
from mlx_eagle.hub.gguf_targets import find_gguf

EXAMPLES = """\b
Examples:
  mlx-eagle convert path/to/llama --out llama-4bit
  mlx-eagle convert owner/name --out mine --mode mxfp8 --dtype bfloat16
  mlx-eagle convert model.Q4_K_M.gguf --out my-target
  mlx-eagle convert path/to/eagle3-head --target llama-4bit --out my-head
  mlx-eagle convert mtp:owner/name --target path/to/target --out my-head
"""
HEAD_BITS = click.Choice(["4", "8", "none"])
TARGET_BITS = click.Choice([*map(str, BITS), "none"])
TARGET_ONLY = ("bits", "mode", "dtype")
NOT_GGUF = ("bits", "mode", "group_size")
HEAD_ONLY = ("head_bits", "settings", "doctor", "original", "draft_vocab", "draft_texts")


@click.command("convert", epilog=EXAMPLES)
@click.argument("source")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; it must not exist.",
)
@click.option("--target", help="The target of a head: SOURCE is a head if this is given.")
@click.option("--bits", type=TARGET_BITS, help="Bits per weight of a target; default 4, or 8.")
@click.option("--head-bits", type=HEAD_BITS, help="Bits per weight of a head; default 4.")
@click.option(
    "--group-size",
    type=click.Choice([str(size) for size in GROUP_SIZES]),
    help="Weights that share a scale; default 64, or what the mode has.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Decide a fact about a head that its files get wrong, e.g. taps=2,16,29.",
)
@click.option(
    "--original",
    metavar="NAME",
    help="Of which a multi-token prediction layer is a copy: its norms are compared with those "
    "there. Default: the publisher's checkpoint of the target, where that is known.",
)
@click.option(
    "--draft-vocab",
    type=click.IntRange(1),
    help="Draft from so many tokens, the most frequent ones, with the target's output layer.",
)
@click.option(
    "--draft-texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A text file in which --draft-vocab counts tokens. Default: the tokenizer's first tokens.",
)
@click.option(
    *("--doctor", "--calibrate", "doctor"),
    is_flag=True,
    help="Measure a head's doubtful facts, and keep what is best: see `mlx-eagle doctor`.",
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    help="How a target is quantized; default affine. mxfp4 and nvfp4 have 4 bits in groups of 32 "
    "and 16, mxfp8 has 8 in groups of 32.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Type of what is not quantized in a target; default: as published. Of a GGUF file's "
    "scales as well; default there: the smallest in which nothing is lost.",
)
def command(source: str, out: Path, target: str | None, **options: Any) -> None:
    """Convert SOURCE, a draft head or a target: a folder, or owner/name on the hub.

    A target may also be a GGUF file, ollama:NAME or lmstudio:NAME: its quantized values are taken
    over as they are wherever MLX has them, and a table says what became what.
    """
    if target is None:
        for name in HEAD_ONLY:
            if options[name]:
                option = {"settings": "set", "doctor": "doctor (or --calibrate)"}.get(
                    name, name
                ).replace("_", "-")
                raise click.UsageError(f"--{option} is for heads, which need --target as well")
        file = find_gguf(source)
        is_gguf = file is not None and file.is_file()
        click.echo((_convert_gguf if is_gguf else _convert_target)(source, out, options))
        return
    for name in TARGET_ONLY:
        if options[name] is not None:
            raise click.UsageError(
                f"--{name} is for targets; the precision of a head is --head-bits"
            )
    size = int(options["group_size"] or "64")
    head_options: dict[str, Any] = {"bits": _bits(options["head_bits"]), "group_size": size}
    head_options["settings"] = dict(map(_setting, options["settings"]))
    head_options["original"] = options["original"]
    if options["draft_texts"] and not options["draft_vocab"]:
        raise click.UsageError("--draft-texts is for --draft-vocab")
    # The doctor runs the target; a conversion reads its configuration alone.
    needed = None if options["doctor"] or options["draft_vocab"] else ["config.json"]
    config = _convert_head(source, fetch_target_shown(target, needed), out, head_options)
    if options["draft_vocab"]:
        config = _reduce(out, target, options)
    click.echo(_headline(config, out, head_options))
    if options["doctor"]:
        _run_doctor(out, target)
    else:
        click.echo(_doubts(config, out, target), nl=False)


def _bits(precision: str | None) -> int | None:
    """Return the bits that an option asks for; None for no quantization."""
    return None if precision == "none" else int(precision or "4")


def _setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of KEY=VALUE; values are JSON, or numbers with commas."""
    key, found, value = text.partition("=")
    if not found or not value:
        raise click.UsageError(f"--set {text} is not KEY=VALUE, such as taps=2,16,29")
    try:
        return key, json.loads(f"[{value}]" if key == "taps" and value[0] != "[" else value)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(
            f"--set {text}: the value is not a number, true, false, null or a list of numbers"
        ) from error


def _convert_head(source: str, target: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Convert a head and return its configuration."""
    from mlx_eagle.convert.heads import convert_head
    from mlx_eagle.hub.download import to_stderr
    from mlx_eagle.hub.known_heads import original_of
    from mlx_eagle.hub.native_mtp import norm_settings

    folder, original = fetch_shown(source), options.pop("original") or original_of(target)
    settings = norm_settings(folder, original, to_stderr) | options.pop("settings")
    return convert_head(folder, target, out, settings=settings, **options)


def _reduce(out: Path, target: str, options: dict[str, Any]) -> dict[str, Any]:
    """Let a converted head draft from few tokens, and return its configuration."""
    from mlx_eagle.training.reduced_output import reduce_vocabulary

    folder = fetch_target_shown(target)
    return reduce_vocabulary(out, folder, options["draft_vocab"], options["draft_texts"])


def _headline(config: dict[str, Any], out: Path, options: dict[str, Any]) -> str:
    """Return what was written, in a line."""
    return (
        f"{out}: {ALGORITHMS[config['algorithm']]} for {config['target']['name']}, "
        f"{_precision(options)}, taps {', '.join(map(str, config['taps']))}, "
        f"drafts from {config['draft_vocab_size']} of {config['target_vocab_size']} tokens"
    )


def _doubts(config: dict[str, Any], out: Path, target: str) -> str:
    """Return a line for each fact in doubt, and the command that measures them; or nothing."""
    lines = [
        f"  in doubt: {name} ({config['origins'][name]}); {doubt['reason']}\n"
        for name, doubt in config["doubts"].items()
    ]
    if lines:
        where = f"{quote(str(out))} --target {quote(target)}"
        lines.append(f"  to measure it: mlx-eagle doctor {where} --fix\n")
    return "".join(lines)


def _run_doctor(out: Path, target: str) -> None:
    """Measure the head that was written, and mend it."""
    from mlx_eagle.cli.doctor import as_table, diagnose_shown, verdict
    from mlx_eagle.doctor.doctor import repair_head

    diagnosis = diagnose_shown(out, fetch_target_shown(target))
    repair_head(out, diagnosis)
    click.echo(f"{as_table(diagnosis)}\n{verdict(diagnosis, '')}")


def _convert_gguf(source: str, out: Path, options: dict[str, str | None]) -> str:
    """Convert a GGUF file and return what became of its tensors, and the summary."""
    for name in NOT_GGUF:
        if options[name] is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is not for GGUF files, which keep the quantization "
                "that they have"
            )
    from mlx_eagle.convert.gguf.convert import convert_gguf
    from mlx_eagle.convert.gguf.report import as_table

    file = find_gguf(source)
    assert file is not None, "it was found before"
    with Loading(terminal(stderr=True), f"convert {file.name}") as loading:

        def report(done: int, total: int) -> None:
            loading.update(f"convert {file.name}", done, total)

        rows = convert_gguf(file, out, dtype=options["dtype"], progress=report)
    return f"{printable(as_table(rows))}\n{_summary(out)}"


def _convert_target(source: str, out: Path, options: dict[str, str | None]) -> str:
    """Convert a target and return the summary."""
    quantization = _quantization(options)
    from mlx_eagle.convert.targets import convert_target

    convert_target(fetch_shown(source), out, quantization, dtype=options["dtype"])
    return _summary(out)


def _summary(out: Path) -> str:
    """Return what a converted target is, in a line."""
    from mlx_eagle.convert.describe import describe_folder

    facts = describe_folder(out)
    return (
        f"{out}: {facts['model_type']} target, {_target_precision(facts['quantization'])}, "
        f"{facts['num_hidden_layers']} layers, {facts['parameters']:,} parameters"
    )


def _quantization(options: dict[str, str | None]) -> Quantization | None:
    """Return how a target is to be quantized; what MLX does not have is a usage error."""
    bits, size, mode = options["bits"], options["group_size"], options["mode"]
    if bits == "none":
        if size is not None or mode is not None:
            raise click.UsageError("--bits none leaves nothing for --group-size or --mode to say")
        return None
    try:
        return choose_quantization(
            mode or "affine", int(bits) if bits else None, int(size) if size else None
        )
    except EagleError as error:
        raise click.UsageError(str(error)) from error


def _target_precision(quantization: dict[str, Any] | None) -> str:
    """Return how a target's weights are stored, in words; affine is what goes without saying."""
    if quantization is None or "bits" not in quantization:
        return "not quantized"
    mode = quantization.get("mode", "affine")
    return f"{quantization['bits']}-bit" + ("" if mode == "affine" else f" {mode}")


def _precision(options: dict[str, Any]) -> str:
    """Return how weights were written, in words."""
    return "not quantized" if options["bits"] is None else f"{options['bits']}-bit"
