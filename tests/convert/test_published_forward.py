"""Every published kind of head, converted, against PyTorch written from the reference text.

The oracle below follows section 3.1 of the reference and knows nothing of our code: it runs whole
sequences without a cache, on the tensors as they were before the publisher's names were given.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert.heads import convert_head
from mlx_eagle.heads.load import load_head

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

PROMPT, STEPS = 9, 3
# By kind and name: the publisher, what the reference says of the head beyond that publisher's
# plainest one (`facts`, in its symbols), what the file has (`config`, `names`, `file`, `target`),
# and what the user adds (`settings`).
CASES = json.loads((Path(__file__).parents[1] / "data" / "published_heads.json").read_text())


class Oracle:
    """The forward pass as the reference states it; `x` is [L, columns] in every method."""

    def __init__(self, facts: SimpleNamespace, tensors: dict[str, np.ndarray]) -> None:
        self.f = facts
        self.w = {name: torch.from_numpy(value).double() for name, value in tensors.items()}

    def norm(self, x: Any, name: str) -> Any:
        rms = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.f.eps)
        return x * rms * self.w[f"{name}.weight"]

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def fuse(self, taps: Any) -> Any:
        if not self.f.fuse or self.f.algorithm == "eagle":
            return taps
        if self.f.norm_before_fc:
            taps = self.norm(taps, "input_norm")
        if self.f.fc_norm:
            parts = taps.split(self.f.H, -1)
            taps = torch.cat([self.norm(s, f"fc_norm.{i}") for i, s in enumerate(parts)], -1)
        return self.linear(taps, "fc")

    def rope(self, x: Any) -> Any:
        frequencies, scale = rope_frequencies(self.f.hd, self.f.theta, self.f.scaling)
        angle = torch.arange(x.shape[1])[:, None].double() * frequencies
        cos, sin = (angle.cos() * scale).to(x.dtype), (angle.sin() * scale).to(x.dtype)
        if self.f.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(self, x: Any, layer: int) -> Any:
        f, at, rows = self.f, f"layers.{layer}.self_attn", len(x)
        q, k, v = (self.linear(x, f"{at}.{n}_proj").view(rows, -1, f.hd) for n in "qkv")
        if f.qk_norm:
            q, k = self.norm(q, f"{at}.q_norm"), self.norm(k, f"{at}.k_norm")
        q, k = self.rope(q.transpose(0, 1)), self.rope(k.transpose(0, 1))
        k, v = (y.repeat_interleave(f.nh // f.nkv, 0) for y in (k, v.transpose(0, 1)))
        back = torch.arange(rows)[:, None] - torch.arange(rows)
        seen = (back >= 0) & (back < (f.windows[layer] or rows))
        scores = (q @ k.mT * f.hd**-0.5).masked_fill(~seen, -torch.inf)
        return self.linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), f"{at}.o_proj")

    def rest(self, residual: Any, x: Any, layer: int) -> Any:
        """The attention of a layer on `x`, and its MLP, both added to `residual`."""
        at = f"layers.{layer}"
        r = residual + self.attend(x, layer)
        y = self.norm(r, f"{at}.post_attention_layernorm")
        gate = torch.nn.functional.silu(self.linear(y, f"{at}.mlp.gate_proj"))
        return r + self.linear(gate * self.linear(y, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")

    def __call__(self, g: Any, e: Any) -> tuple[Any, Any]:
        """Logits and feedback for hidden states `g` and embeddings `e`, both [L, h]."""
        lm_head = self.w["lm_head.weight" if self.f.own_lm_head else "target.lm_head"]
        if self.f.algorithm == "eagle":
            x = self.linear(torch.cat([e, g], -1), "fc")
            p = self.rest(x, x, 0)
            return p @ lm_head.T, p
        u = self.norm(g, "layers.0.input_layernorm") if self.f.double_norm else g
        u = self.norm(u, "layers.0.hidden_norm") if self.f.hidden_norm else u
        x = torch.cat([self.norm(e, "layers.0.input_layernorm"), u], -1)
        p = self.rest(u if self.f.norm_before_residual else g, x, 0)
        for i in range(1, self.f.layers):
            p = self.rest(p, self.norm(p, f"layers.{i}.input_layernorm"), i)
        o = self.norm(p, "norm") if self.f.final_norm else p
        return o @ lm_head.T, o if self.f.norm_output else p


def rope_frequencies(d: int, base: float, scaling: dict[str, Any] | None) -> tuple[Any, float]:
    """Angles per position [d / 2] float64, and the factor on queries and keys."""
    plain = base ** (-torch.arange(0, d, 2).double() / d)
    if scaling is None:
        return plain, 1.0
    slow = plain / scaling["factor"]
    if (kind := scaling["rope_type"]) == "linear":
        return slow, 1.0
    trained = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        turns = trained * plain / (2 * math.pi)  # in the trained context
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * plain + (1 - keep) * slow, 1.0
    # YaRN: dimensions that turn more than 32 times stay, those that turn less than once slow down.
    first, last = (
        d * math.log(trained / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1)
    )
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d - 1)
    ramp = ((torch.arange(d // 2).double() - first) / (last - first)).clamp(0, 1)
    return (1 - ramp) * plain + ramp * slow, 0.1 * math.log(scaling["factor"]) + 1


def assert_close(found: mx.array, expected: Any, what: str) -> None:
    """Demand float32 and a difference below 1e-5 of the largest value, which float64 gives."""
    want = expected.numpy()
    assert (found.shape, found.dtype) == (want.shape, mx.float32), what
    error = np.abs(np.array(found) - want).max() / np.abs(want).max()
    assert error < 1e-5, f"{what}: {error:.1e}"


@pytest.fixture(scope="module")
def converted() -> dict[str, Any]:
    """What was converted in this module, which reads it and changes nothing of it."""
    return {}


@pytest.fixture
def convert(
    publish: Callable[..., Any], tmp_path: Path, converted: dict[str, Any]
) -> Callable[[str], Any]:
    """Publish a case and convert it; gives the head, its config, the oracle and an embedding."""

    def run(case: str) -> SimpleNamespace:
        told = dict(next(cases[case] for cases in CASES.values() if case in cases))
        settings = told.pop("settings", None)
        made = publish(**told)
        out = tmp_path / "head"
        written = convert_head(made.source, made.target, out, bits=None, settings=settings)
        head, oracle = load_head(out), Oracle(made.facts, made.tensors)
        own, theirs = made.facts.own_embedding, made.tensors.get("target.embed_tokens")
        table = made.tensors["embed_tokens.weight"] if own else theirs
        embed = head.embed_tokens if own else lambda ids: mx.array(table)[ids]
        lm_head = mx.array(made.tensors.get("target.lm_head", 0.0))
        logits = head.lm_head if made.facts.own_lm_head else lambda x: x @ lm_head.T
        return SimpleNamespace(
            head=head,
            written=written,
            oracle=oracle,
            facts=made.facts,
            tensors=made.tensors,
            table=torch.from_numpy(table).double(),
            embed=embed,
            logits=logits,
        )

    def run_once(case: str) -> Any:
        if case not in converted:
            converted[case] = run(case)
        return converted[case]

    return run_once


def random_rows(rows: int, columns: int) -> Any:
    """Rows [rows, columns] whose scales differ, as those of taps do."""
    random = np.random.default_rng(5)
    scales = np.linspace(0.05, 4.0, columns)
    rows_of_taps = (random.standard_normal((rows, columns)) * scales).astype(np.float32)
    return torch.from_numpy(rows_of_taps).double()  # float32 numbers, added up in float64


@pytest.mark.parametrize("case", CASES["eagle3"] | CASES["eagle"])
def test_prompt_and_three_recurrent_steps_equal_pytorch(
    case: str, convert: Callable[[str], Any]
) -> None:
    made = convert(case)
    head, oracle, cache = made.head, made.oracle, made.head.make_cache()
    taps = random_rows(PROMPT, len(made.facts.taps) * made.facts.H)
    ids = [int(i) for i in np.random.default_rng(6).integers(0, made.facts.V, PROMPT + STEPS)]
    g, e = oracle.fuse(taps), made.table[ids]
    hidden = head.fuse(mx.array(taps.float().numpy())[None])
    assert_close(hidden[0], g, "fused taps")
    done = 0
    for rows in (PROMPT, *[1] * STEPS):
        embeddings = made.embed(mx.array(ids[done : done + rows]))[None]
        out = head(hidden, embeddings, cache)
        logits, feedback = oracle(g, e[: done + rows])
        assert_close(made.logits(out.normed)[0], logits[done:], f"logits at row {done}")
        assert_close(out.feedback[0], feedback[done:], f"feedback at row {done}")
        if not done:
            cache.commit(range(PROMPT))
        done += rows
        # Both go on from the reference's state: what one step rounds another may magnify.
        g = torch.cat([g, feedback[-1:]])
        hidden = mx.array(g[-1:].float().numpy())[None]


@pytest.mark.parametrize("case", CASES["eagle3"] | CASES["eagle"])
def test_configuration_states_what_the_reference_says(
    case: str, convert: Callable[[str], Any]
) -> None:
    made = convert(case)
    f, found = made.facts, made.written
    older = f.algorithm == "eagle"
    expected = {
        "format_version": 2,
        "algorithm": f.algorithm,
        "hidden_size": f.h,
        "target_hidden_size": f.H,
        "target_vocab_size": f.V,
        "draft_vocab_size": f.D,
        "intermediate_size": f.I,
        "num_hidden_layers": f.layers,
        "num_attention_heads": f.nh,
        "num_key_value_heads": f.nkv,
        "head_dim": f.hd,
        "rms_norm_eps": f.eps,
        "rope_theta": f.theta,
        "rope_interleaved": f.interleaved,
        "rope_dims": f.hd,
        "sliding_windows": f.windows,
        "taps": f.taps,
        "fuse_taps": f.fuse and not older,
        "norm_before_fc": f.norm_before_fc,
        "fc_norm": f.fc_norm,
        "input_layernorm": not older,
        "hidden_norm": f.hidden_norm and not older,
        "double_norm": f.double_norm,
        "norm_before_residual": f.norm_before_residual,
        "norm_output": f.norm_output,
        "final_norm": f.final_norm,
        "qk_norm": f.qk_norm,
        "attention_bias": f.qkv_bias,
        "attention_output_bias": f.o_bias,
        "mlp_bias": False,
        "fc_bias": f.fc_bias,
        "own_embedding": f.own_embedding,
        "own_lm_head": f.own_lm_head,
        "mask_token_id": None,
    }
    found = json.loads(json.dumps(found))
    assert {key: found[key] for key in expected} == expected
    assert (found["rope_scaling"] or {}).items() >= (f.scaling or {}).items()
    kept = [i + int(offset) for i, offset in enumerate(made.tensors["d2t"])]
    assert made.head.draft_to_target.tolist() == kept


@pytest.mark.parametrize("case", CASES["p-eagle"])
@pytest.mark.parametrize("together", [True, False], ids=["one call", "two calls"])
def test_p_eagle_gives_four_tokens_in_one_pass(
    case: str, together: bool, convert: Callable[[str], Any]
) -> None:
    """Behind the real rows come masked ones: the mask's embedding and the fused mask_hidden."""
    made = convert(case)
    head, oracle, cache, mask = made.head, made.oracle, made.head.make_cache(), 95
    taps = random_rows(PROMPT, 3 * made.facts.H)
    masked = oracle.w["mask_hidden"].view(1, -1).expand(STEPS, -1)
    ids = [*range(PROMPT), *[mask] * STEPS]
    logits, _ = oracle(oracle.fuse(torch.cat([taps, masked])), made.table[ids])
    assert (head.config.mask_token_id, made.written["algorithm"]) == (mask, "p-eagle")
    ours = mx.broadcast_to(head.mask_hidden.reshape(1, -1), (STEPS, 3 * made.facts.H))
    hidden = head.fuse(mx.concatenate([mx.array(taps.float().numpy()), ours])[None])
    embeddings = head.embed_tokens(mx.array(ids))[None]
    n_rows = [PROMPT + STEPS] if together else [PROMPT, STEPS]
    done = 0
    for rows in n_rows:
        at = slice(done, done + rows)
        out = head(hidden[:, at], embeddings[:, at], cache)
        assert_close(head.lm_head(out.normed)[0], logits[at], f"logits at row {done}")
        cache.commit(range(min(rows, PROMPT)))
        done += rows
