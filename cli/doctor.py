"""`mlx-eagle doctor`: which taps, rope and norms a head drafts best with; corrects its files."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from mlx_eagle.cli.terminal.display import Loading, fetch_shown, fetch_target_shown, terminal

if TYPE_CHECKING:
    from mlx_eagle.doctor.doctor import Diagnosis

EXAMPLES = """\b
Examples:
  mlx-eagle doctor my-head --target path/to/target
  mlx-eagle doctor my-head --target path/to/target --fix
  mlx-eagle doctor my-head --target path/to/target --adapter-path my-adapter
  mlx-eagle doctor --hosts hosts.json --target path/to/target
"""


USELESS = 1.2  # tokens per round: a head that is run as it was trained gives more


@click.command("doctor", epilog=EXAMPLES)
@click.argument("head", required=False)
@click.option("--target", help="The target: a folder, or owner/name on the hub.")
@click.option(
    "--hosts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Look at the hosts of this file instead: versions, links, and the target's files.",
)
@click.option("--fix", is_flag=True, help="Write what measures best into the converted head.")
@click.option(
    "--adapter-path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Measure with this LoRA adapter on the target, and without.",
)
def command(
    head: str | None,
    target: str | None,
    hosts: Path | None,
    fix: bool,
    adapter_path: Path | None,
) -> None:
    """Try every plausible reading of HEAD, converted or as published, on its target.

    Wrong taps, rope or norms break nothing: the head only drafts badly. The target writes a short
    text, and each reading is scored by how much of it the head would have drafted.
    """
    if hosts is not None:
        if head or fix or adapter_path:
            raise click.UsageError("--hosts looks at hosts alone: leave out HEAD and its options")
        click.echo(describe_hosts(hosts, target))
        return
    if head is None or target is None:
        raise click.UsageError("give HEAD and --target, or --hosts")
    from mlx_eagle.doctor.doctor import is_converted, repair_head

    if fix and adapter_path:
        raise click.UsageError(
            "--fix writes what the target itself shows: leave out --adapter-path, then measure "
            "the adapter"
        )
    folder, target_folder = fetch_shown(head), fetch_target_shown(target)
    if fix and not is_converted(folder):
        raise click.UsageError(
            f"{head} is not converted, so there is nothing to write to; use "
            f"mlx-eagle convert {head} --target {target} --out DIR --doctor"
        )
    diagnosis = diagnose_shown(folder, target_folder, adapter_path)
    click.echo(as_table(diagnosis))
    if adapter_path:
        click.echo(cost_of_adapter(diagnosis))
    if fix:
        repair_head(folder, diagnosis)
    remedy = f"mlx-eagle doctor {quote(head)} --target {quote(target)} --fix"
    if not is_converted(folder):
        remedy = f"mlx-eagle convert {quote(head)} --target {quote(target)} --out DIR --doctor"
    click.echo(verdict(diagnosis, "" if fix else remedy))


def describe_hosts(file: Path, target: str | None) -> str:
    """Return what the hosts of a file have and how fast they are reached, a line each.

    Raises:
        EagleError: naming the host that has other versions or files, or cannot be reached.
    """
    from mlx_eagle.cli.terminal.display import table
    from mlx_eagle.cluster.hosts import read_hosts
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.doctor.hosts import examine_hosts

    known = read_hosts(file)
    folder = None if target is None else (fetch_target_shown(target), target)
    report = examine_hosts(start_cluster(known), folder)
    rows = {"rank 0": "this machine"}
    for rank, (name, memory) in enumerate(zip(report.names, report.memory, strict=True), start=1):
        rows[f"rank {rank}"] = f"{name}, MLX may use {memory / 1e9:.3g} GB"
    rows["versions"] = "the same"
    if report.has_files:
        rows["target"] = "the same files"
    for link in report.links:
        rows[f"{link.nbytes} bytes"] = f"{1e3 * link.seconds:.3g} ms per sum over all"
    rows["bandwidth"] = f"{report.bytes_per_second / 1e9:.3g} GB/s"
    return table(rows)


def diagnose_shown(head: Path, target: Path, adapter: Path | None = None) -> "Diagnosis":
    """Measure a head; how far it is shows on stderr."""
    from mlx_eagle.doctor.doctor import diagnose_head

    with Loading(terminal(stderr=True)) as loading:
        return diagnose_head(head, target, loading.update, adapter)


def cost_of_adapter(diagnosis: "Diagnosis") -> str:
    """Return what an adapter costs in tokens per round, each text being the target's own."""
    assert diagnosis.without_adapter is not None, "it was measured with an adapter"
    without = diagnosis.without_adapter.acceptance_length
    with_it = diagnosis.before.acceptance_length
    share = with_it / without - 1
    return (
        f"the adapter: {without:.2f} tokens per round without it, {with_it:.2f} with ({share:+.0%})"
    )


def as_table(diagnosis: "Diagnosis") -> str:
    """Return one line for each reading that was tried, the head as it is first."""
    chosen = {(c.fact, str(c.value)) for c in diagnosis.changes}
    lines = [f"{'fact':<24}{'value':<24}{'first token':>12}{'per round':>11}"]
    for fact, value, score in diagnosis.trials:
        name, shown = (fact, _plain(value)) if fact else ("as it is", "")
        figures = f"{score.agreement:>12.1%}{score.acceptance_length:>11.2f}"
        if len(score.likelihoods) < len(diagnosis.before.likelihoods):
            figures = f"{'clearly worse':>23}"  # given up on the way: not on the same text
        mark = "  <- better" if (fact, str(value)) in chosen else ""
        lines.append(f"{name:<24}{shown:<24}{figures}{mark}")
    return "\n".join(lines)


def verdict(diagnosis: "Diagnosis", remedy: str) -> str:
    """Return what the measurements mean, in a line or two.

    Args:
        diagnosis: the measurements.
        remedy: the command that applies the changes; "" if they have been.
    """
    before, after = diagnosis.before.acceptance_length, diagnosis.after.acceptance_length
    repaired = ""
    if diagnosis.draft_ids == "t2d":
        repaired = "draft ids: rebuilt from t2d, because d2t is not usable\n"
    return repaired + _summary(diagnosis, before, after, remedy)


def _summary(diagnosis: "Diagnosis", before: float, after: float, remedy: str) -> str:
    """Return whether something is to be changed, and what it gives in tokens per round."""
    if not diagnosis.changes:
        if before < USELESS:
            return (
                f"no reading helps: {before:.2f} tokens per round. The head may be for another "
                "target, or for another chat template"
            )
        return f"nothing to change: {before:.2f} tokens per round"
    changes = ", ".join(f"{c.fact} {_plain(c.value)}" for c in diagnosis.changes)
    done = f"to write it: {remedy}" if remedy else "written"
    return f"{changes}: {before:.2f} -> {after:.2f} tokens per round ({done})"


def _plain(value: Any) -> str:
    """Return a fact's value as words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        are_names = len(value) > 0 and isinstance(value[0], str)
        return f"{len(value)} norms" if are_names else ", ".join(map(str, value)) or "none"
    if isinstance(value, dict) and "rope_type" in value:
        return f"{value['rope_type']} x{value.get('factor')}"
    if isinstance(value, dict):
        return "; ".join(map(_plain, value.values()))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
