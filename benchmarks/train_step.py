"""Seconds of one training step: a straightforward PyTorch script and mlx-eagle, in turns.

Both train a head of the fixture's sizes (`pydoc-eagle3`) by 7 steps of training-time test on 4 rows
of 512 tokens: taps and final states of the target are given, the teacher's distribution over 2048
draft tokens is made from the final states, then forward, backward and one update (Muon for the
matrices, AdamW for the rest). The PyTorch side is written as the fixture's trainer is: attention
of step 0 with a matrix of scores, later steps as dot products, no compilation.

Each side is a process of its own, so that neither finds the other's threads or libraries; they take
turns, so that whatever else the machine does falls on both. MLX's CPU products are those of the
BLAS that is preloaded:

    python benchmarks/train_step.py --blas libopenblas.so.0
    python benchmarks/train_step.py --only torch --parts

`--parts` times the PyTorch side with one part removed at a time, and prints what each saves. The
removed products change the numbers that come out, not the work of what remains.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ring import Ring

ROWS, LENGTH, STEPS, DECAY = 4, 512, 7, 0.8
WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP_WIDTH, TAPS = 256, 4, 2, 64, 768, 3
VOCAB, DRAFT_VOCAB, EPS, THETA = 4096, 2048, 1e-5, 10000.0
TEXT = 128  # tokens of each of the texts that a row is packed from
# Threads that spin while they wait take a shared core from the one that they wait for: on a busy
# machine a PyTorch step took 14 s instead of 2. Unbound, both of PyTorch's wait on one core; two
# processes of ours that are bound would share one.
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
BOUND = {"OMP_PROC_BIND": "true"}
PARTS = ("nothing", "loss", "attention", "mlp", "update")


def synthetic() -> dict[str, np.ndarray]:
    """Return what both sides train on: random features of the fixture's sizes."""
    random = np.random.default_rng(0)
    shape = (ROWS, LENGTH)

    def normal(*sizes: int) -> np.ndarray:
        return random.standard_normal(sizes, dtype=np.float32)

    return {
        "tokens": random.integers(0, VOCAB, shape, dtype=np.int32),
        "taps": normal(*shape, TAPS * WIDTH),
        "final": normal(*shape, WIDTH),
        "choices": random.integers(0, VOCAB, shape, dtype=np.int32),
        "texts": np.broadcast_to(np.arange(LENGTH, dtype=np.int32) // TEXT + 1, shape).copy(),
        "trained": np.ones(shape, dtype=bool),
        "embedding": normal(VOCAB, WIDTH),
        "unembedding": normal(VOCAB, WIDTH) / WIDTH**0.5,
        "draft_ids": np.sort(random.permutation(VOCAB)[:DRAFT_VOCAB]).astype(np.int32),
    }


class TorchStep:
    """A training step in PyTorch; called, it takes one and returns its loss.

    Args:
        given: what `synthetic` returned.
        without: a part that is left out, or "nothing".
    """

    def __init__(self, given: dict[str, np.ndarray], without: str) -> None:
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(2)
        self.torch, self.without = torch, without
        self.data = data = {name: torch.tensor(array) for name, array in given.items()}
        draft_ids = data["draft_ids"].long()
        self.teacher = data["unembedding"][draft_ids]
        self.counts = torch.isin(data["choices"], draft_ids).float()
        ids = torch.nn.functional.pad(data["tokens"], (0, STEPS)).long()
        self.embedded = data["embedding"][ids]  # [B, L + K, D]: a table look-up, not timed
        w = {name: torch.nn.Parameter(torch.randn(n, k) / k**0.5) for name, n, k in matrices()}
        norms = ("input_layernorm", "hidden_norm", "post_attention_layernorm", "norm")
        self.w = w | {name: torch.nn.Parameter(torch.ones(WIDTH)) for name in norms}
        self.later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        self.update = muon_and_adamw(torch, self.w)

    def norm(self, x: Any, name: str) -> Any:
        """Norm x over its last axis."""
        return self.torch.nn.functional.rms_norm(x, (WIDTH,), self.w[name], EPS)

    def rope(self, x: Any, step: int) -> Any:
        """Rotate x [B, heads, L, head_dim] to the positions of a step."""
        torch, half = self.torch, HEAD_DIM // 2
        frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = ((torch.arange(LENGTH) + step)[:, None] * frequencies).repeat(1, 2)
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def split(self, x: Any, name: str, n: int) -> Any:
        """Project x [B, L, ..] for n heads: [B, n, L, head_dim]."""
        return (x @ self.w[name].T).view(ROWS, LENGTH, n, HEAD_DIM).transpose(1, 2)

    def attend(self, x: Any, step: int, past: list[Any]) -> Any:
        """Attend from x [B, L, 2 h] to the first step's rows and to those of its own chain."""
        share, scale = HEADS // KV_HEADS, HEAD_DIM**-0.5
        queries = self.rope(self.split(x, "q_proj", HEADS), step)
        keys = self.rope(self.split(x, "k_proj", KV_HEADS), step).repeat_interleave(share, 1)
        values = self.split(x, "v_proj", KV_HEADS).repeat_interleave(share, 1)
        past.append((keys, values))
        if self.without == "attention":
            return (queries + keys + values).transpose(1, 2).reshape(ROWS, LENGTH, -1)
        scores = queries @ past[0][0].transpose(-1, -2) * scale
        scores = scores.masked_fill(self.later, -self.torch.inf)
        own = [(queries * k).sum(-1, keepdim=True) * scale for k, _ in past[1:]]
        shares = self.torch.softmax(self.torch.cat([scores, *own], -1), -1)
        out = shares[..., :LENGTH] @ past[0][1]
        for i, (_, v) in enumerate(past[1:]):
            out = out + shares[..., LENGTH + i : LENGTH + i + 1] * v
        return out.transpose(1, 2).reshape(ROWS, LENGTH, -1)

    def forward(self, hidden: Any, step: int, past: list[Any]) -> Any:
        """Run the head's layer on hidden [B, L, h]."""
        w = self.w
        e = self.norm(self.embedded[:, 1 + step : 1 + step + LENGTH], "input_layernorm")
        x = self.torch.cat([e, self.norm(hidden, "hidden_norm")], -1)
        h = hidden + self.attend(x, step, past) @ w["o_proj"].T
        y = self.norm(h, "post_attention_layernorm")
        if self.without == "mlp":
            return h + y
        gate = self.torch.nn.functional.silu(y @ w["gate_proj"].T)
        return h + (gate * (y @ w["up_proj"].T)) @ w["down_proj"].T

    def judge(self, hidden: Any, step: int, probabilities: Any) -> Any:
        """Return the loss of a step; its teacher is in the row for all but the last tokens."""
        n = LENGTH - 1 - step
        logits = self.norm(hidden, "norm") @ self.w["lm_head"].T
        log_probs = self.torch.log_softmax(logits, -1)
        log_probs.detach().argmax(-1)  # for the hits that the trainer reports
        crossed = (probabilities[:, 1 + step :] * log_probs[:, :n]).sum(-1)
        return -(crossed * self.counts[:, 1 + step :]).sum() / (ROWS * LENGTH)

    def loss(self) -> Any:
        """Return the loss of all steps together."""
        with self.torch.no_grad():
            probabilities = self.torch.softmax(self.data["final"] @ self.teacher.T, -1)
        hidden, total = self.data["taps"] @ self.w["fc"].T, 0.0
        past: list[Any] = []
        for step in range(STEPS):
            hidden = self.forward(hidden, step, past)
            is_judged = self.without != "loss"
            term = self.judge(hidden, step, probabilities) if is_judged else hidden.sum()
            total = total + term * DECAY**step
        return total

    def __call__(self) -> float:
        """Take one step."""
        value = self.loss()
        value.backward()
        if self.without == "update":
            for parameter in self.w.values():
                parameter.grad = None
        else:
            self.update()
        return float(value.detach())


def matrices() -> list[tuple[str, int, int]]:
    """Return name, outputs and inputs of the head's matrices."""
    return [
        ("fc", WIDTH, TAPS * WIDTH),
        ("q_proj", HEADS * HEAD_DIM, 2 * WIDTH),
        ("k_proj", KV_HEADS * HEAD_DIM, 2 * WIDTH),
        ("v_proj", KV_HEADS * HEAD_DIM, 2 * WIDTH),
        ("o_proj", WIDTH, HEADS * HEAD_DIM),
        ("gate_proj", MLP_WIDTH, WIDTH),
        ("up_proj", MLP_WIDTH, WIDTH),
        ("down_proj", WIDTH, MLP_WIDTH),
        ("lm_head", DRAFT_VOCAB, WIDTH),
    ]


def muon_and_adamw(torch: Any, weights: dict[str, Any]) -> Callable[[], None]:
    """Return the update of the fixture's trainer, which also forgets the gradients."""
    inner = [p for name, p in weights.items() if p.ndim == 2 and name != "lm_head"]
    others = [p for name, p in weights.items() if p.ndim == 1 or name == "lm_head"]
    adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    momenta = [torch.zeros_like(p) for p in inner]

    def orthogonal(gradient: Any) -> Any:
        x = gradient / (gradient.norm() + 1e-7)
        is_tall = x.shape[0] > x.shape[1]
        x = x.T if is_tall else x
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.T if is_tall else x

    def update() -> None:
        with torch.no_grad():
            for p, momentum in zip(inner, momenta, strict=True):
                if p.grad is None:  # its part is left out
                    continue
                momentum.mul_(0.95).add_(p.grad)
                direction = orthogonal(p.grad.add(momentum, alpha=0.95))
                p.add_(direction, alpha=-0.02 * max(1, p.shape[0] / p.shape[1]) ** 0.5)
                p.grad = None
        adamw.step()
        adamw.zero_grad()

    return update


def our_step(given: dict[str, np.ndarray]) -> Callable[[], float]:
    """Return one training step of mlx-eagle on the same data, which returns its loss.

    Of several processes each has its share of the rows; the gradients are averaged.
    """
    import mlx.core as mx
    import mlx.nn as nn

    from mlx_eagle.training.allocator import keep_freed_memory
    from mlx_eagle.training.batch import Batch
    from mlx_eagle.training.objectives.eagle3 import make_objective
    from mlx_eagle.training.objectives.teacher import Teacher
    from mlx_eagle.training.options import HeadOptions, LoopOptions
    from mlx_eagle.training.run.optimizer import full_rates, make_optimizer, set_rates
    from mlx_eagle.training.run.processes import Processes
    from mlx_eagle.training.run.step import Step

    keep_freed_memory()
    processes = Processes.joined()
    share = ROWS // processes.size
    rows = slice(processes.rank * share, (processes.rank + 1) * share)
    batch = Batch(*(mx.array(given[name][rows]) for name in Batch._fields))
    embedding, output = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
    embedding.weight, output.weight = mx.array(given["embedding"]), mx.array(given["unembedding"])
    teacher = Teacher(embedding, output)
    head = our_head(mx.array(given["draft_ids"]), teacher)
    options, loop = HeadOptions(steps=STEPS, step_decay=DECAY), LoopOptions(optimizer="muon")
    objective = make_objective(head, teacher, options)
    optimizer = make_optimizer(loop, head)
    set_rates(optimizer, full_rates(loop))
    step = Step(head, objective, optimizer, 0.0, processes)

    def one_step() -> float:
        sums = step.submit([batch]).sums()
        mx.eval(head.state)
        return sums.loss / sums.n_tokens

    return one_step


def our_head(draft_ids: Any, teacher: Any) -> Any:
    """Return an EAGLE-3 head of the fixture's sizes that is ready to be trained."""
    from mlx_eagle.training.new_head import TargetSizes, make_head, unfreeze_weights
    from mlx_eagle.training.options import HeadOptions

    config = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": MLP_WIDTH,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
    }
    sizes = TargetSizes(WIDTH, VOCAB, 4, config)
    head = make_head(HeadOptions(taps=(2, 4, 5)), sizes, draft_ids, teacher)
    unfreeze_weights(head)
    return head


def serve(side: str, without: str) -> None:
    """Take a step for every line on stdin and print its seconds."""
    step = TorchStep(synthetic(), without) if side == "torch" else our_step(synthetic())
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss}), flush=True)


class Side:
    """One process or several that take training steps together when they are asked to.

    Args:
        name: "torch" or "ours".
        without: as for `TorchStep`.
        blas: library to preload.
        processes: how many share the rows; each has a thread then, and one alone has two.
    """

    def __init__(
        self, name: str, without: str = "nothing", blas: str | None = None, processes: int = 1
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | THREADS
        environment |= BOUND if name == "torch" else {}
        if blas is not None:
            environment["LD_PRELOAD"] = blas
        environment |= {"OPENBLAS_NUM_THREADS": "1"} if processes > 1 else {}
        self.ring = Ring(processes)
        command = [sys.executable, os.path.abspath(__file__), "--serve", name, without]
        self.name = name if without == "nothing" else f"{name} without {without}"
        self.name += f", {processes} processes" if processes > 1 else ""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [
            subprocess.Popen(command, env=environment | rank, **pipes)
            for rank in self.ring.environments
        ]
        self.read()
        self.seconds: list[float] = []

    def read(self) -> list[str]:
        """Return the next line of each process."""
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(lines):
            raise SystemExit(f"{self.name} ended with status {self.processes[0].wait()}")
        return lines

    def step(self) -> None:
        """Take one step and note its seconds."""
        start = time.perf_counter()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        self.read()
        self.seconds.append(time.perf_counter() - start)

    def report(self) -> str:
        """Return what was measured in one line."""
        low, middle, high = min(self.seconds), statistics.median(self.seconds), max(self.seconds)
        return f"{self.name:<24}{middle:.3f} s a step (median; {low:.3f} to {high:.3f})"


def main() -> None:
    """Parse the command line, let the sides take turns, print medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blas", help="library to preload for MLX's products on a CPU")
    parser.add_argument("--only", choices=("torch", "ours"), help="measure one side alone")
    parser.add_argument("--parts", action="store_true", help="also PyTorch with parts removed")
    parser.add_argument("-n", "--turns", type=int, default=15)
    args = parser.parse_args()
    sides = [Side("torch", part) for part in (PARTS if args.parts else PARTS[:1])]
    sides = [] if args.only == "ours" else sides
    if args.only != "torch":
        sides += [Side("ours", blas=args.blas, processes=n) for n in (1, 2)]
    for turn in range(args.turns):
        for side in sides if turn % 2 else reversed(sides):
            side.step()
    first = statistics.median(sides[0].seconds)
    for side in sides:
        print(f"{side.report()}, ratio {first / statistics.median(side.seconds):.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
