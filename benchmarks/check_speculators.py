#!/usr/bin/env python3
"""Heads, converted and exported, against their publisher's own library; a command, not a test.

    python3 -m venv venv
    venv/bin/pip install torch==2.13.0
    venv/bin/pip install --no-deps speculators==0.9.0 hs-connectors==0.9.0
    venv/bin/pip install transformers==5.19.0 "datasets<=5.1.0" "loguru<=0.7.3" openai \
        aiohttp httpx psutil protobuf pydantic-settings rich typer -e .
    venv/bin/python benchmarks/check_speculators.py

Two requirements of speculators, torchvision and torchaudio, are left out: neither is imported. No
GPU and, once this is installed, no network is needed. The library makes tiny random heads, saves
them and loads them back; the saved files are converted, and both sides compute logits for a prompt
and for recurrent steps after it. Then the converted head is exported, and the library computes the
logits of what it loads from there. Each line gives the largest difference of our logits and of the
exported head's, relative to the largest logit; above 1e-4 the command fails.

The library's forward pass is that of training: it takes 128 rows at a time, and every row takes
recurrent steps of its own, which see the prompt up to that row and the row's earlier steps. So one
row's steps are a draft as we make it. A sliding window is the exception: in training it stays where
the row is, in use it moves along with the steps. Windowed heads are compared on the prompt only.
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import torch
from loguru import logger
from speculators import SpeculatorsConfig, VerifierConfig
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.models.peagle import PEagleDraftModel, PEagleSpeculatorConfig
from speculators.models.peagle.data import generate_cod_sample_indices
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from mlx_eagle.convert.export import export_head
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import load_head

LIMIT = 1e-4
ROWS, ROW, STEPS = 128, 99, 4  # in the library; the last of the prompt; passes of the head
VOCABULARY, HIDDEN = 96, 32
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SWA = {"use_sliding_window": True, "sliding_window": 24, "layer_types": ["sliding_attention"]}
TRAINED = "original_max_position_embeddings"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, TRAINED: 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, TRAINED: 64}


class Case(NamedTuple):
    """A head: its kind of layer, and what differs from the library's defaults."""

    layer: type[LlamaConfig] | type[Qwen3Config]
    flags: tuple[str, ...] = ()
    options: dict[str, Any] | None = None  # of the layer
    draft_vocab_size: int = 40
    taps: tuple[int, ...] = (2, 4, 5)
    is_parallel: bool = False
    steps: int = STEPS


RESIDUAL, FC, OUTPUT = "norm_before_residual", "norm_before_fc", "norm_output"
CASES = {
    "llama": Case(LlamaConfig),
    "llama, normed residual": Case(LlamaConfig, (RESIDUAL,)),
    "llama, normed residual, fc and output": Case(LlamaConfig, (RESIDUAL, FC, OUTPUT)),
    "llama, two layers": Case(LlamaConfig, (RESIDUAL,), {"num_hidden_layers": 2}),
    "llama, biases, llama3 rope": Case(
        LlamaConfig, (OUTPUT,), {"attention_bias": True, "rope_parameters": LLAMA3}
    ),
    "llama, sliding window": Case(LlamaConfig, (RESIDUAL, FC, OUTPUT), SWA, steps=1),
    "llama, full vocabulary, five taps": Case(
        LlamaConfig, (RESIDUAL,), draft_vocab_size=VOCABULARY, taps=(1, 2, 4, 5, 8)
    ),
    "qwen3": Case(Qwen3Config),
    "qwen3, normed residual": Case(Qwen3Config, (RESIDUAL,)),
    "qwen3, norm of each tap, yarn": Case(
        Qwen3Config,
        (RESIDUAL, "fc_norm"),
        {"rope_parameters": YARN, "max_position_embeddings": 256},
    ),
    "qwen3, two layers, normed fc and output": Case(
        Qwen3Config, (FC, OUTPUT), {"num_hidden_layers": 2, "rms_norm_eps": 1e-3}
    ),
    "qwen3, sliding window": Case(Qwen3Config, (RESIDUAL,), SWA, steps=1),
    "P-EAGLE, llama": Case(LlamaConfig, is_parallel=True),
    "P-EAGLE, qwen3, four layers": Case(
        Qwen3Config, (RESIDUAL, FC), {"num_hidden_layers": 4}, is_parallel=True
    ),
}


def make_config(case: Case, target: Path) -> Eagle3SpeculatorConfig:
    """Return the library's configuration of a head for the target in that folder."""
    usual = {"num_hidden_layers": 1, "rms_norm_eps": 1e-5}
    layer = case.layer(**(SIZES | usual | (case.options or {})))
    proposal = GreedyTokenProposalConfig()
    kind = PEagleSpeculatorConfig if case.is_parallel else Eagle3SpeculatorConfig
    return kind(
        transformer_layer_config=layer,
        draft_vocab_size=case.draft_vocab_size,
        eagle_aux_hidden_state_layer_ids=list(case.taps),
        speculators_config=SpeculatorsConfig(
            algorithm="peagle" if case.is_parallel else "eagle3",
            proposal_methods=[proposal],
            default_proposal_method=proposal.proposal_type,
            verifier=VerifierConfig.from_pretrained(str(target)),
        ),
        **dict.fromkeys(case.flags, True),
        **({"mask_token_id": VOCABULARY - 1} if case.is_parallel else {}),
    )


def publish(case: Case, target: Path, out: Path) -> Any:
    """Let the library make a random head, save it to `out` and load it from there."""
    kind = PEagleDraftModel if case.is_parallel else Eagle3DraftModel
    model = kind(make_config(case, target))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + (1.0 if "norm" in name else 0.0))
    kept = torch.randperm(VOCABULARY)[: case.draft_vocab_size].sort().values
    is_kept = torch.zeros(VOCABULARY, dtype=torch.bool).index_fill(0, kept, True)
    model.load_vocab_mappings(is_kept, kept - torch.arange(len(kept)))
    model.save_pretrained(out)
    return kind.from_pretrained(out).eval()


def run_library(model: Any, *inputs: torch.Tensor, **options: Any) -> list[np.ndarray]:
    """Return the logits [rows, W] of each step of the library's forward pass."""
    found: list[np.ndarray] = []
    hook = model.lm_head.register_forward_hook(lambda _, __, out: found.append(out[0].numpy()))
    with torch.no_grad():
        model(*inputs, torch.zeros_like(inputs[-1]), **options)
    hook.remove()
    return found


def library_chain(model: Any, taps: torch.Tensor, tokens: torch.Tensor, steps: int) -> np.ndarray:
    """Return the logits [ROW + steps, W] of the prompt's rows and of the steps after the last."""
    first, *later = run_library(model, taps, tokens, ttt_steps=steps)
    return np.concatenate([first[: ROW + 1], *(step[ROW : ROW + 1] for step in later)])


def library_parallel(model: Any, taps: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """Return the same of a P-EAGLE head: its later rows are masked, and run along with the rest."""
    sampling = {"num_depths": STEPS, "down_sample_ratio": 1.0, "down_sample_ratio_min": 1.0}
    torch.manual_seed(0)  # the library leaves out some rows at random, the same ones below
    anchors, _ = generate_cod_sample_indices(ROWS, torch.ones(1, ROWS), **sampling)
    torch.manual_seed(0)
    (logits,) = run_library(
        model,
        taps,
        tokens,
        verifier_last_hidden_states=torch.zeros(1, ROWS, HIDDEN),
        loss_config=resolve_loss_config("kl_div", "eager"),  # the default wants Triton
        **sampling,
    )
    return np.concatenate([logits[:ROW], logits[(anchors == ROW).numpy()]])


def our_logits(head: EagleHead, taps: mx.array, tokens: mx.array, steps: int) -> np.ndarray:
    """Return what the converted head makes of the same rows."""
    cache, n = head.make_cache(), ROW + 1
    out = head(head.fuse(taps[:, :n]), head.embed_tokens(tokens[:, :n]), cache)
    cache.commit(range(n))
    normed = [out.normed]
    if head.config.mask_token_id is not None:
        hidden, masks = head.masked(steps - 1)
        normed.append(head(hidden, head.embed_tokens(masks), cache).normed)
    else:
        for i in range(n, n + steps - 1):
            out = head(out.feedback[:, -1:], head.embed_tokens(tokens[:, i : i + 1]), cache)
            normed.append(out.normed)
    return np.array(head.lm_head(mx.concatenate(normed, axis=1))[0])


class Errors(NamedTuple):
    """Relative errors of logits; infinite where draft ids are mapped otherwise."""

    converted: float
    exported: float


def check(case: Case, target: Path, work: Path) -> Errors:
    """Return the errors of a converted head, and of what the library makes of it exported."""
    torch.manual_seed(3)
    model = publish(case, target, work / "published")
    convert_head(work / "published", target, work / "converted", bits=None)
    head = load_head(work / "converted")
    assert isinstance(head, EagleHead), "no Medusa heads here"
    taps = torch.randn(1, ROWS, len(case.taps) * HIDDEN) * 3
    tokens = torch.randint(0, VOCABULARY - 1, (1, ROWS))
    expected = library_logits(case, model, taps, tokens)
    found = our_logits(head, mx.array(taps.numpy()), mx.array(tokens.numpy()), case.steps)
    offsets = 0 if model.d2t is None else model.d2t.numpy()
    is_mapped = np.array_equal(head.draft_to_target, np.arange(case.draft_vocab_size) + offsets)
    again = reload_exported(case, work / "converted", target, work / "exported")
    is_mapped_again = same_tables(model, again)
    back = library_logits(case, again, taps, tokens)
    return Errors(
        relative_error(found, expected) if is_mapped else float("inf"),
        relative_error(back, expected) if is_mapped_again else float("inf"),
    )


def library_logits(case: Case, model: Any, taps: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """Return the library's logits [rows, W] for a case, as its kind of head makes them."""
    if case.is_parallel:
        return library_parallel(model, taps, tokens)
    return library_chain(model, taps, tokens, case.steps)


def reload_exported(case: Case, head: Path, target: Path, out: Path) -> Any:
    """Export a converted head and let the library load it."""
    export_head(head, out, "speculators", target=target, verifier=str(target))
    kind = PEagleDraftModel if case.is_parallel else Eagle3DraftModel
    return kind.from_pretrained(out).eval()


def same_tables(one: Any, other: Any) -> bool:
    """Say whether two heads of the library draft from the same tokens."""
    pairs = ((one.d2t, other.d2t), (one.t2d, other.t2d))
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of logits, relative to the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> int:
    """Check every case and print a line for each."""
    logger.remove()  # what the library tells on stderr
    warnings.filterwarnings("ignore", message="flex_attention called without")  # slow, and exact
    disable_progress_bar()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        # The library reads the target's weights, too, when it loads a head.
        config = LlamaConfig(**SIZES, num_hidden_layers=8)
        LlamaForCausalLM(config).save_pretrained(work / "target")
        for i, (name, case) in enumerate(CASES.items()):
            errors = check(case, work / "target", work / str(i))
            agrees = max(errors) <= LIMIT
            failed += not agrees
            shown = f"{errors.converted:.1e}  {errors.exported:.1e}"
            print(f"{shown}  {'ok' if agrees else 'DIFFERS':7}  {name}")
    print(f"{len(CASES) - failed} of {len(CASES)} heads agree to {LIMIT:g}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
