"""Whether a model fits is said before it is downloaded, by the hub's file list and config.json."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import run_here
from hub_settings import hub_at
from mlx_eagle.cache.estimate import number_bytes
from mlx_eagle.errors import EagleError
from mlx_eagle.hub.fit import Fit, foresee
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.load_options import LoadOptions

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "vocab_size": 1000,
    "torch_dtype": "float32",
}
ROW = 4 * 2 * 2 * 64 * number_bytes()  # bytes of a token
WEIGHTS = 2_000_000


@pytest.fixture
def hub(fake_hub: Any) -> Any:
    """The fake hub with a target of which only the configuration is real."""
    fake_hub.files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": bytes(WEIGHTS),
        "pytorch_model.bin": bytes(WEIGHTS),
        "README.md": b"x" * 10**6,
    }
    return fake_hub


def mlx_eagle(hub: Any, home: Path, *words: str) -> Any:
    """Run a command against the hub with a cache of its own."""
    with hub_at(hub.url, home):
        return run_here(*words)


def test_chat_and_generate_refuse_before_the_download_what_does_not_fit(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    too_little = ("--memory", "0.001")  # GB
    for command in (("generate", "hello"), ("chat",)):
        done = mlx_eagle(hub, tmp_path, *command, "--model", "owner/model", *too_little)
        missing = WEIGHTS + 4096 * ROW - 10**6
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert f"owner/model does not fit, by {missing / 1e9:.1f} GB: weights 0.0 GB" in line
        assert "no weights were downloaded" in line
    assert "model.safetensors" not in hub.downloads()


def test_generate_says_beforehand_what_a_download_needs(hub: Any, tmp_path: Path) -> None:
    command = ("generate", "hello", "--model", "owner/model", "--max-tokens", "2")
    done = mlx_eagle(hub, tmp_path, *command)
    first = done.stderr.splitlines()[0]
    assert first.startswith("owner/model: 0.0 GB to download; fits, with up to about ")
    assert "model.safetensors" in hub.downloads()
    again = mlx_eagle(hub, tmp_path, *command)
    assert "to download" not in again.stderr


def test_inspect_describes_a_target_on_the_hub_without_its_weights(
    hub: Any, tmp_path: Path
) -> None:
    done = mlx_eagle(hub, tmp_path, "inspect", "owner/model", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kind"] == "Hugging Face target, not downloaded"
    assert (facts["bytes"], facts["num_hidden_layers"]) == (WEIGHTS, 4)
    assert facts["fit"]["fits"] is True
    assert facts["fit"]["cache"] == 4096 * ROW
    assert hub.downloads() == ["config.json"]
    text = mlx_eagle(hub, tmp_path, "inspect", "owner/model").stdout
    assert "  memory                      fits, with up to " in text


def test_heads_says_whether_target_and_head_fit_or_why_that_is_not_known(
    hub: Any, tmp_path: Path
) -> None:
    name = "mlx-community/Qwen3-4B-4bit"
    done = mlx_eagle(hub, tmp_path, "heads", name)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"whether it fits into memory is not known: the hub has no model {name}")


def test_a_folder_is_measured_as_it_is_and_options_count() -> None:
    target, head = DEMO / "target", DEMO / "head"
    fit = foresee(target, head)
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in (target, head)
    ]
    assert [fit.weights, fit.head] == sizes
    assert fit.download == 0 and fit.missing < 0 and fit.most_tokens > 4096
    alone = foresee(target, "none")
    assert alone.head == 0 and fit.cache == alone.cache * 9 // 8, "a layer more than the target's 8"
    bounded = foresee(target, head, LoadOptions(max_kv_size=64, max_context=10**6))
    assert bounded.cache == alone.cache // 4096 * 64 + alone.cache // 8 // 2
    small = foresee(target, head, LoadOptions(kv_bits=4, kv_group_size=64, max_context=100))
    assert small.cache < fit.cache / 100 and small.context == 100
    assert small.most_tokens > fit.most_tokens
    tight = foresee(target, head, LoadOptions(memory_limit=1000))
    assert tight.missing > 0 and tight.most_tokens == 0
    assert str(tight).startswith("does not fit, by ")


def test_sixteen_bits_that_become_thirty_two_count_double(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": "bfloat16"}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(1000))
    assert foresee(tmp_path).weights == 1000 * number_bytes() // 2
    assert foresee(tmp_path, None, LoadOptions(dtype="float32")).weights == 2000
    assert foresee(tmp_path, None, LoadOptions(dtype="float16")).weights == 1000


def test_what_is_nowhere_cannot_be_foreseen(tmp_path: Path) -> None:
    with pytest.raises(EagleError):
        foresee(tmp_path)


def test_the_words_name_every_part() -> None:
    fit = Fit(5 * 10**9, 4 * 10**9, 3 * 10**8, 4096, 5 * 10**8, 41_000, 16 * 10**9)
    assert str(fit) == (
        "fits, with up to about 41,000 tokens: weights 4.0 GB, head 0.3 GB, 4,096 tokens 0.5 GB; "
        "MLX may use 16.0 GB here"
    )
    assert str(fit._replace(memory=4 * 10**9)).startswith("does not fit, by 0.8 GB: weights 4.0")
    short = fit._replace(memory=45 * 10**8, most_tokens=1600)
    assert str(short).startswith("fits, with up to about 1,600 tokens; not with 4,096, by 0.3 GB: ")
