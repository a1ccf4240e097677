"""Which types of targets run as their files say, against PyTorch: the table of docs/targets.md.

    python benchmarks/target_types.py [--out docs/targets.md] [TYPE ...]

Every type of model that both transformers and mlx-lm know is made tiny and random, saved as
transformers saves it, and loaded. Its 24 greedy tokens must be PyTorch's. Needs torch.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "ffn_hidden_size": 128,
    "ffn_dim": 128,
    "n_inner": 128,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 1,
    "state_size": 16,
}
N_PROMPT, N_TOKENS = 40, 24
MLA = {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_shared_experts": 1}
# Types that need more than sizes, or other ones.
OWN_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), MLA),
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_experts": 4},
    "gemma3_text": {"num_hidden_layers": 6},
    "falcon_h1": {"mamba_d_ssm": 128},
    "glm4_moe": {"n_shared_experts": 1, "first_k_dense_replace": 1},
}
SECONDS = 60  # for a type
MARKS = ("<!-- types -->", "<!-- end of types -->")


class Verdict(NamedTuple):
    """What became of a type."""

    kind: str
    reason: str = ""


def shared_types() -> list[str]:
    """Return the types of language models that both libraries know."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from mlx_eagle.convert.mlx_lm_support import runnable_types

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(runnable_types()))


def make(model_type: str, folder: Path) -> tuple[list[int], list[int]]:
    """Save a tiny model; returns a prompt and the tokens with which PyTorch continues it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = CONFIG_MAPPING[model_type]
    sizes = SIZES | OWN_SIZES.get(model_type, {})
    fields = set(known().to_dict())
    if {"vision_config", "audio_config", "text_config"} & fields:
        raise ValueError("it has parts for other senses, which are not made tiny here")
    config = known(**{key: value for key, value in sizes.items() if key in fields})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.12)
    model.save_pretrained(folder)
    prompt = torch.randint(3, SIZES["vocab_size"], (1, N_PROMPT), generator=torch.manual_seed(2))
    model.generation_config.eos_token_id = None  # an end token is a token like every other here
    with torch.no_grad():
        text = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=N_TOKENS,
            do_sample=False,
        )
    return prompt[0].tolist(), text[0, N_PROMPT:].tolist()


def judge(folder: Path, prompt: list[int], expected: list[int]) -> Verdict:
    """Load a target and compare its tokens."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlx_eagle.target.load import load_network

    try:
        loaded = load_network(folder)
        loaded.network.set_dtype(mx.float32)
        steps = generate_step(mx.array(prompt), loaded.network, max_tokens=N_TOKENS)
        found = [int(token) for token, _ in steps]
    except Exception as error:  # whatever model code raises is a refusal; the reason is the table's
        text = str(error).replace(folder.name, "the target") or type(error).__name__
        return Verdict("refused", _reason(text))
    if found == expected:
        kind = "right" if loaded.max_context is None else "limited"
        return Verdict(kind, "; ".join(loaded.remarks))
    same = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return Verdict("wrong", f"other tokens from number {same + 1} on")


def verdict_of(model_type: str) -> Verdict:
    """Make a type tiny, and judge it."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        signal.alarm(SECONDS)
        try:
            prompt, expected = make(model_type, Path(place))
        except Exception as error:  # transformers has no rule for which sizes a type can have
            return Verdict("not made", _reason(f"{type(error).__name__}: {error}"))
        finally:
            signal.alarm(0)
        return judge(Path(place), prompt, expected)


def _reason(text: str) -> str:
    """Return the beginning of an error on one line."""
    return " ".join(text.split())[:120]


def too_slow(signal_number: int, frame: Any) -> None:
    """End what takes too long."""
    raise TimeoutError(f"more than {SECONDS} seconds")


def as_table(verdicts: dict[str, Verdict]) -> str:
    """Return the verdicts as Markdown, a line per type."""
    rows = [f"| {name} | {v.kind} | {v.reason.replace('|', '/')} |" for name, v in verdicts.items()]
    return "\n".join(["| type | verdict | why |", "|---|---|---|", *rows])


def put_table(file: Path, table: str) -> None:
    """Put the table between its marks in a document."""
    text = file.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    file.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


def main() -> None:
    """Judge all types, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    signal.signal(signal.SIGALRM, too_slow)
    verdicts = {}
    for name in arguments.types or shared_types():
        verdicts[name] = verdict_of(name)
        print(name, *verdicts[name], sep="\t", file=sys.stderr, flush=True)
    if arguments.out:
        put_table(arguments.out, as_table(verdicts))
    else:
        print(as_table(verdicts))


if __name__ == "__main__":
    main()
