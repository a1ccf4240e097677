"""LoRA adapters: the text is that of mlx-lm with the same adapter, with and without head (B10)."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers

import mlx_eagle
from cases import broad
from command_line import run_here
from mlx_eagle.doctor import doctor
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.target.load import load_network
from mlx_eagle.tree import TreeShape

CONFIG: dict[str, Any] = {
    "fine_tune_type": "lora",
    "num_layers": 4,
    "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
}
PROMPT = [5, 9, 30, 41, 17, 200, 301]
N_TOKENS = 6
# One kind is enough for commands that load it as every other one does.
only_lora = pytest.mark.parametrize("adapter", ["lora"], indirect=True)


@pytest.fixture(scope="module", params=["lora", broad("dora")])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter for the demo target, written as mlx-lm writes it."""
    folder, kind = tmp_path_factory.mktemp("adapter"), request.param
    network = load_network(DEMO / "target").network
    network.freeze()
    mx.random.seed(3)  # the other half of an adapter is random from the start
    parameters = CONFIG["lora_parameters"]
    linear_to_lora_layers(network, CONFIG["num_layers"], parameters, use_dora=kind == "dora")
    weights = {
        name: 0.05 * mx.random.normal(array.shape) if name.endswith("lora_b") else array
        for name, array in tree_flatten(network.trainable_parameters())
    }
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"fine_tune_type": kind}))
    return folder


def test_b10_an_adapter_gives_the_text_that_it_gives_in_mlx_lm(adapter: Path, demo: Any) -> None:
    stock, _ = mlx_lm.load(str(DEMO / "target"), adapter_path=str(adapter))
    stock.set_dtype(mx.float32)
    expected = [int(t) for t, _ in generate_step(mx.array(PROMPT), stock, max_tokens=N_TOKENS)]
    engine = mlx_eagle.load(DEMO / "target", DEMO / "head", adapter_path=adapter, calibrate=False)
    assert str(adapter) in engine.info.target
    options: dict[str, Any] = {"max_tokens": N_TOKENS, "ignore_eos": True}
    assert engine.generate(PROMPT, speculate=False, **options).tokens == expected
    drafted = engine.generate(PROMPT, tree=TreeShape(2, 2, 4), **options)
    assert drafted.tokens == expected
    assert drafted.stats.drafted > 0
    plain = demo.generate(PROMPT, speculate=False, **options)
    assert plain.tokens != expected, "the adapter changes nothing"


@only_lora
def test_an_adapter_is_named_on_the_command_line(adapter: Path) -> None:
    command = ["generate", "hello", "--adapter-path", str(adapter), "--no-calibrate"]
    done = run_here(*command, "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    done = run_here("generate", "hello", "--adapter-path", "/no/such/folder")
    assert (done.returncode, "no folder /no/such/folder" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda folder: (folder / "adapters.safetensors").unlink(),
            CheckpointError,
            "lacks adapters",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").touch(), CheckpointError, "PEFT"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            CheckpointError,
            "no adapter for this target",
        ),
        (lambda folder: folder.rename(folder.parent / "gone"), EagleError, "there is no folder"),
    ],
)
def test_what_is_no_adapter_is_refused_by_name(
    spoil: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"a.lora_a": mx.ones((2, 2))})
    spoil(folder)
    with pytest.raises(error, match=message):
        mlx_eagle.load(DEMO / "target", "none", adapter_path=str(folder))


@only_lora
@pytest.mark.broad
@pytest.mark.usefixtures("short_doctor")
def test_the_doctor_says_what_an_adapter_costs(
    adapter: Path, is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_quick:
        monkeypatch.setattr(doctor, "N_TOKENS", 18)
    command = ["doctor", str(DEMO / "head"), "--target", str(DEMO / "target")]
    done = run_here(*command, "--adapter-path", str(adapter))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("the adapter: ")]
    found = re.fullmatch(
        r"the adapter: (.+) tokens per round without it, (.+) with \(-\d+%\)", line
    )
    assert found is not None
    assert float(found[1]) > float(found[2]) + 0.3, "a random adapter takes the head's sense away"
    done = run_here(*command, "--adapter-path", str(adapter), "--fix")
    assert (done.returncode, "leave out --adapter-path" in done.stderr) == (2, True)


@only_lora
@pytest.mark.broad
def test_bench_drafts_for_the_adapted_target_with_every_head(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("What does zip do?\n")
    heads = ["--compare", f"head:{DEMO / 'head'}", "--compare", "mlx-lm"]
    done = run_here(
        *("bench", "--adapter-path", str(adapter), "--prompts", str(tmp_path / "p.txt"), "--json"),
        *("-n", "4", "--warmup", "0", "--no-calibrate", *heads),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["equality"]["n_compared"] == 2
    assert report["equality"]["differences"] == []
    assert str(adapter) in json.dumps(report)
