"""Mistakes planted one at a time, and whether the tests of that room notice.

Each mutation replaces one piece of text in a copy of the package, as it would be installed, and
runs some test files on it; the checkout itself is not touched. A mutation that no test notices is
a missing test. Slow: a run of a few seconds to a minute for each of them.

    python benchmarks/mutations.py [WORD ...]     # only those whose name or file holds a word
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600  # seconds for the tests of one mutation; some make a loop endless


class Mutation(NamedTuple):
    """One mistake.

    Attributes:
        name: what goes wrong.
        file: the module, below the package.
        old: what stands there, once.
        new: what is put in its place.
        tests: the files that should notice, below tests/.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CACHE = ("cache/test_kv.py", "cache/test_window.py")
SINKS = ("cache/test_attention_sinks.py",)
QUANTIZED = ("cache/test_quantized.py",)
RECURRENT = ("cache/test_recurrent.py",)
SELECTION = ("sampling/test_samplers.py", "sampling/test_token_selector.py")
GRAMMAR = ("sampling/test_grammar.py",)
LOOP = ("decoding/test_rounds.py", "decoding/test_accept.py", "decoding/test_stats.py")
PLANNER = ("planner/test_planner.py", "planner/test_round_plan.py")

MUTATIONS = [
    Mutation(
        "commit moves rows to a place counted from the start of the text",
        "cache/kv.py",
        "start = self.held + stay\n        if self._fresh is None:",
        "start = self.rows + stay\n        if self._fresh is None:",
        CACHE,
    ),
    Mutation(
        "commit moves rows only where the first of them moves",
        "cache/kv.py",
        "        if stay < len(path):\n",
        "        if stay == 1 and stay < len(path):\n",
        CACHE,
    ),
    Mutation(
        "trim keeps one row too many",
        "cache/kv.py",
        'rows to {rows}"\n        self.rows = rows\n        self.forget()\n\n    def fork',
        'rows to {rows}"\n        self.rows = min(self.rows, rows + 1)\n'
        "        self.forget()\n\n    def fork",
        CACHE,
    ),
    Mutation(
        "a fork writes through the handle of the original",
        "cache/kv.py",
        "twin.keys = None if self.keys is None else self.keys[...]",
        "twin.keys = self.keys",
        CACHE,
    ),
    Mutation(
        "a branch sees one position more than the window",
        "cache/kv.py",
        "positions[:, None] - mx.arange(first, rows) < window",
        "positions[:, None] - mx.arange(first, rows) <= window",
        CACHE,
    ),
    Mutation(
        "the window of the next row reaches one position further back",
        "cache/window.py",
        "return max(0, self.rows - self.window + 1)",
        "return max(0, self.rows - self.window)",
        CACHE,
    ),
    Mutation(
        "a full window cache keeps one row less than its margin",
        "cache/window.py",
        "self.rows - self.window - self.margin + 1)",
        "self.rows - self.window - self.margin + 2)",
        CACHE,
    ),
    Mutation(
        "a window cache goes back to where a visible row is missing",
        "cache/window.py",
        "self.first <= max(0, rows - self.window + 1)",
        "self.first <= max(0, rows - self.window + 2)",
        CACHE,
    ),
    Mutation(
        "a restored window cache takes its rows for the oldest ones",
        "cache/window.py",
        "self.first = rows - (0 if self.keys is None else self.keys.shape[2])",
        "self.first = 0",
        CACHE,
    ),
    Mutation(
        "a query sees one row more than the window behind the sinks",
        "cache/attention_sinks.py",
        "shown = (distances < self.window) | (places < self.sinks)",
        "shown = (distances <= self.window) | (places < self.sinks)",
        SINKS,
    ),
    Mutation(
        "a fork of a quantized cache writes through the handles of the original",
        "cache/quantized.py",
        "twin._parts = [part[...] for part in self._parts]",
        "twin._parts = list(self._parts)",
        QUANTIZED,
    ),
    Mutation(
        "undecided rows stay expected as branches when they are forgotten",
        "cache/kv.py",
        "self.pending, self.open_rows, self._fresh = 0, None, None",
        "self.pending, self._fresh = 0, None",
        CACHE,
    ),
    Mutation(
        "layers go back to where only one of them can",
        "cache/model_cache.py",
        "return all(part.can_trim(rows) for part in self.parts)",
        "return any(part.can_trim(rows) for part in self.parts)",
        CACHE,
    ),
    Mutation(
        "a state is run again on one row too few",
        "cache/recurrent.py",
        "            self._follow(stretch, n)\n",
        "            self._follow(stretch, n - 1)\n",
        RECURRENT,
    ),
    Mutation(
        "a fork of a state shares its checkpoints",
        "cache/recurrent.py",
        "twin._checkpoints = dict(self._checkpoints)",
        "twin._checkpoints = self._checkpoints",
        RECURRENT,
    ),
    Mutation(
        "checkpoints of what was trimmed away stay",
        "cache/recurrent.py",
        "for at, state in self._checkpoints.items() if at <= rows}",
        "for at, state in self._checkpoints.items()}",
        RECURRENT,
    ),
    Mutation(
        "the newest checkpoint is dropped instead of the oldest",
        "cache/recurrent.py",
        "del self._checkpoints[min(self._checkpoints)]",
        "del self._checkpoints[max(self._checkpoints)]",
        RECURRENT,
    ),
    Mutation(
        "a processor sees its node's prefix without the node",
        "sampling/token_selector.py",
        "tree.tokens[mx.array(paths[node])]",
        "tree.tokens[mx.array(paths[parent])]",
        SELECTION,
    ),
    Mutation(
        "the history of the processors lacks the root of every round",
        "sampling/token_selector.py",
        "tree.tokens[mx.array(list(path))]",
        "tree.tokens[mx.array(list(path[1:]), dtype=mx.int32)]",
        SELECTION,
    ),
    Mutation(
        "rounds are counted where tokens should be, when an answer ends within one",
        "sampling/token_selector.py",
        "self._n_committed += len(path)",
        "self._n_committed += 1",
        SELECTION,
    ),
    Mutation(
        "the noise of a draw is that of the root's position",
        "sampling/samplers.py",
        "self._noise(offset + d, scores.shape[-1])",
        "self._noise(offset, scores.shape[-1])",
        SELECTION,
    ),
    Mutation(
        "top-p is applied after top-k",
        "sampling/samplers.py",
        "        if self.top_p < 1:\n"
        "            log_probs = apply_top_p(log_probs, self.top_p)\n"
        "        if self.min_p > 0:\n"
        "            log_probs = apply_min_p(log_probs, self.min_p)\n"
        "        if 0 < self.top_k < logits.shape[-1]:\n"
        "            log_probs = apply_top_k(log_probs, self.top_k)\n",
        "        if 0 < self.top_k < logits.shape[-1]:\n"
        "            log_probs = apply_top_k(log_probs, self.top_k)\n"
        "            log_probs = log_probs - mx.logsumexp(log_probs, axis=-1, keepdims=True)\n"
        "        if self.top_p < 1:\n"
        "            log_probs = apply_top_p(log_probs, self.top_p)\n"
        "        if self.min_p > 0:\n"
        "            log_probs = apply_min_p(log_probs, self.min_p)\n",
        SELECTION,
    ),
    Mutation(
        "filters see the tempered distribution",
        "sampling/samplers.py",
        "scores = self._filtered(logits)",
        "scores = self._filtered(logits / self.temperature) * self.temperature",
        SELECTION,
    ),
    Mutation(
        "mlx's generator goes back one draw too far",
        "sampling/samplers.py",
        "_set_random_state(self._path[-1 - n])",
        "_set_random_state(self._path[-2 - n])",
        SELECTION,
    ),
    Mutation(
        "a node draws after the node before it instead of its parent",
        "sampling/samplers.py",
        "_set_random_state(self._states[parent] if node else before)",
        "_set_random_state(self._states[-1] if node else before)",
        SELECTION,
    ),
    Mutation(
        "a node's grammar goes on after the node before it instead of its parent",
        "sampling/grammar.py",
        "self._follow(states[parent], token)",
        "self._follow(states[-1], token)",
        GRAMMAR,
    ),
    Mutation(
        "text may follow an end token in a tree",
        "sampling/grammar.py",
        "rows[is_end | ~rows.any(axis=1)] = vocabulary.end_row",
        "rows[~rows.any(axis=1)] = vocabulary.end_row",
        GRAMMAR,
    ),
    Mutation(
        "children of any accepted node are accepted",
        "decoding/accept.py",
        "parents[node] == path[-1]",
        "parents[node] in path",
        LOOP,
    ),
    Mutation(
        "a round is counted one level too shallow",
        "decoding/stats.py",
        "for level in range(depth):",
        "for level in range(depth - 1):",
        LOOP,
    ),
    Mutation(
        "the drafter takes in the taps of the first nodes instead of the accepted ones",
        "decoding/rounds.py",
        "taps[mx.array(path)]",
        "taps[: len(path)]",
        LOOP,
    ),
    Mutation(
        "rows that wait are not observed before a draft",
        "decoding/rounds.py",
        "    if plan.shape != PLAIN:\n        decoder.pending.observe()\n",
        "",
        LOOP,
    ),
    Mutation(
        "the depth of a round counts its root",
        "decoding/rounds.py",
        "depth = max(check_structure(parents.tolist()))",
        "depth = max(check_structure(parents.tolist())) + 1",
        LOOP,
    ),
    Mutation(
        "a round that was submitted ahead is committed twice",
        "decoding/loop.py",
        "is_committed=following is not None",
        "is_committed=False",
        LOOP,
    ),
    Mutation(
        "a prompt's chunk is observed with its own tokens as the next ones",
        "decoding/prefill.py",
        "ids[start + 1 : end + 1]",
        "ids[start:end]",
        LOOP,
    ),
    Mutation(
        "a probe after a pause weighs no more than another round",
        "planner/throughput.py",
        "        self.n_recent = self.BEFORE_PROBE\n",
        "        pass\n",
        PLANNER,
    ),
    Mutation(
        "a head that gives less than it promises is trusted",
        "planner/throughput.py",
        "(min(expected, came / self.SHORT) if is_judged else expected) / seconds",
        "expected / seconds",
        PLANNER,
    ),
    Mutation(
        "a hit that was not expected is no surprise",
        "planner/planner.py",
        "surprises.add(level.source)",
        "pass",
        PLANNER,
    ),
    Mutation(
        "pauses stay long after drafting has paid again",
        "planner/planner.py",
        "return Phase() if pays else",
        "return Phase(0, phase.next_pause) if pays else",
        PLANNER,
    ),
    Mutation(
        "pauses double for ever",
        "planner/planner.py",
        "min(2 * pause, longest)",
        "2 * pause",
        PLANNER,
    ),
    Mutation(
        "drafting is always checked, whatever a check costs",
        "planner/planner.py",
        "return self.costs.checks(depth) < self.CHECK_COST * depth * seconds",
        "return True",
        PLANNER,
    ),
    Mutation(
        "drafting is never checked",
        "planner/planner.py",
        "return self.costs.checks(depth) < self.CHECK_COST * depth * seconds",
        "return False",
        PLANNER,
    ),
    Mutation(
        "further levels are not imagined before drafting stops",
        "planner/round_plan.py",
        "            if self._worth(paths, imagined)[0] > worth:\n                return True\n",
        "",
        PLANNER,
    ),
]


def install(folder: Path) -> None:
    """Copy the package as it would be installed; the demo pair is only linked."""
    ignored = shutil.ignore_patterns("demo", "__pycache__")
    shutil.copytree(ROOT / "mlx_eagle", folder / "mlx_eagle", ignore=ignored)
    (folder / "mlx_eagle" / "demo").symlink_to(ROOT / "mlx_eagle" / "demo")
    for part in ("convert", "cli"):
        shutil.copytree(ROOT / part, folder / "mlx_eagle" / part, ignore=ignored)


def run_tests(site: Path, tests: tuple[str, ...]) -> str:
    """Return the first test that fails on what is installed in `site`; "" if none does."""
    options = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    files = [str(Path("tests", test)) for test in tests]
    # Without its site an interpreter does not know of an editable installation of this checkout.
    command = [sys.executable, "-S", "-m", "pytest", *options, *files]
    entries = (entry for entry in sys.path[1:] if Path(entry).resolve() != ROOT)
    path = os.pathsep.join([str(site), *entries])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else done.stdout[-1000:] + done.stderr[-1000:]


def verdict(mutation: Mutation) -> str:
    """Plant a mutation and say who noticed."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        install(site)
        file = site / "mlx_eagle" / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            return f"STALE: {text.count(mutation.old)} places"
        file.write_text(text.replace(mutation.old, mutation.new))
        return run_tests(site, mutation.tests) or "SURVIVED"


def main(words: list[str]) -> int:
    """Try the mutations that were asked for; 1 if one of them survives or is out of date."""
    chosen = [m for m in MUTATIONS if not words or any(w in m.name + m.file for w in words)]
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            if failed := run_tests(Path(folder), tests):
                print(f"without any mutation: {failed}")
                return 1
    n_bad = 0
    for mutation in chosen:
        said = verdict(mutation)
        n_bad += said.startswith(("SURVIVED", "STALE"))
        print(f"{mutation.file:<30}{mutation.name}\n{'':<30}{said}", flush=True)
    print(f"{len(chosen) - n_bad} of {len(chosen)} noticed")
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
