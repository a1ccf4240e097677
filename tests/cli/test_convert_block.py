"""`mlx-eagle convert`, `inspect` and `export` of heads that draft blocks."""

import json
from pathlib import Path

from block_files import ROWS, write
from command_line import run_here


def test_a_block_head_is_converted_and_described(tmp_path: Path) -> None:
    written, out = write(tmp_path, "speculators DSpark"), tmp_path / "head"
    command = ["convert", str(written.source), "--target", str(written.target)]
    done = run_here(*command, "--head-bits", "none", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "DSpark block head for target" in done.stdout
    assert "drafts from 40 of 64 tokens" in done.stdout
    assert "in doubt: " in done.stdout and "root_predicts" in done.stdout
    described = json.loads(run_here("inspect", str(written.source), "--json").stdout)
    assert described["kind"] == "speculators DSpark block head" and described["convertible"]
    assert described["widths"]["rank"] == 8
    described = json.loads(run_here("inspect", str(out), "--json").stdout)
    assert (described["block_size"], described["markov"]) == (ROWS, "vanilla")
    done = run_here("export", str(out), "--layout", "specforge", "--out", str(tmp_path / "x"))
    assert (
        done.returncode == 1
        and "has a DSpark block head, for which there is no layout" in done.stderr
    )
