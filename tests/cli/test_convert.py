"""`mlx-eagle convert` and `mlx-eagle inspect`: one line or one object on stdout, or one error."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner, Result

from cases import broad
from mlx_eagle.cli.convert import command as convert
from mlx_eagle.cli.inspect import command as inspect
from mlx_eagle.convert.describe import describe_folder
from mlx_eagle.errors import CheckpointError, EagleError, HubError
from mlx_eagle.heads.config import HeadConfig


def run(command: Any, *arguments: object) -> Result:
    """Run a command as the group does; an EagleError leaves as itself."""
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=True)
    if isinstance(result.exception, EagleError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def converted(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The fixture head, converted by the command with its defaults."""
    out = tmp_path_factory.mktemp("converted") / "head"
    arguments = (fixtures / "pydoc-eagle3", "--target", fixtures / "pydoc-llama", "--out", out)
    return out, run(convert, *arguments)


def test_head_is_converted_to_4_bits_and_summed_up_in_one_line(
    converted: tuple[Path, Result],
) -> None:
    out, result = converted
    assert result.exit_code == 0
    assert result.stdout == (
        f"{out}: EAGLE-3 head for pydoc-llama, 4-bit, taps 2, 4, 5, "
        "drafts from 2048 of 4096 tokens\n"
    )
    config = json.loads((out / "config.json").read_text())
    assert config["quantization"] == {"bits": 4, "group_size": 64}


@pytest.fixture(scope="module")
def shallow(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture target without most of its layers and tokens, which is soon quantized."""
    source, folder = fixtures / "pydoc-llama", tmp_path_factory.mktemp("targets") / "shallow"
    folder.mkdir()
    for file in source.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name: value[:512] if value.shape[0] == 4096 else value
        for name, value in mx.load(str(source / "model.safetensors")).items()
        if not re.search(r"layers\.[2-7]\.", name)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


def test_target_is_converted_with_the_bits_that_were_asked_for(
    shallow: Path, tmp_path: Path
) -> None:
    result = run(convert, shallow, "--out", tmp_path / "t", "--bits", "8")
    assert result.exit_code == 0
    assert result.stdout == (
        f"{tmp_path / 't'}: llama target, 8-bit, 2 layers, 1,836,288 parameters\n"
    )
    facts = describe_folder(tmp_path / "t")
    assert facts["quantization"]["bits"] == 8
    assert facts["kind"] == "MLX target"


@pytest.mark.parametrize(
    ("options", "words", "quantization"),
    [
        ([], "4-bit", {"bits": 4, "group_size": 64, "mode": "affine"}),
        broad(["--bits", "3", "--group-size", "128"], "3-bit", {"bits": 3, "group_size": 128}),
        (["--mode", "mxfp8"], "8-bit mxfp8", {"bits": 8, "group_size": 32, "mode": "mxfp8"}),
        broad(["--mode", "nvfp4"], "4-bit nvfp4", {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
        (["--bits", "none", "--dtype", "float32"], "not quantized", None),
    ],
)
def test_target_is_summed_up_with_its_mode_and_all_of_its_parameters(
    shallow: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    quantization: dict[str, Any] | None,
) -> None:
    """They are 2 layers of 786,944, two tables of 512 * 256 and a norm of 256."""
    out = tmp_path / "t"
    result = run(convert, shallow, "--out", out, *options)
    assert result.stdout == f"{out}: llama target, {words}, 2 layers, 1,836,288 parameters\n"
    found = describe_folder(out)
    assert (found["quantization"] or {}).items() >= (quantization or {}).items()
    if quantization is None:
        assert set(found["types"]) == {"F32"}


def test_no_quantization_can_be_asked_for(fixtures: Path, tmp_path: Path) -> None:
    options = ("--target", fixtures / "pydoc-llama", "--head-bits", "none")
    result = run(convert, fixtures / "pydoc-eagle3", *options, "--out", tmp_path / "h")
    assert "not quantized" in result.stdout
    assert describe_folder(tmp_path / "h")["quantization"] is None


def test_head_and_target_that_are_mixed_up_are_told_apart(fixtures: Path, tmp_path: Path) -> None:
    head, target, out = fixtures / "pydoc-eagle3", fixtures / "pydoc-llama", tmp_path / "out"
    with pytest.raises(CheckpointError, match="SafeAILab EAGLE-3 head: to convert it, name its"):
        run(convert, head, "--out", out)
    with pytest.raises(CheckpointError, match="pydoc-eagle3 is a draft head, not a target"):
        run(convert, target, "--target", head, "--out", out)
    with pytest.raises(CheckpointError, match="pydoc-llama is a target, not a draft head"):
        run(convert, target, "--target", target, "--out", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "Missing option '--out'"),
        (["head", "--target", "t", "--out", "o", "--bits", "4"], "--bits is for targets"),
        (["model", "--out", "o", "--head-bits", "4"], "--head-bits is for heads"),
        (["head", "--target", "t", "--out", "o", "--mode", "mxfp4"], "--mode is for targets"),
        (["head", "--target", "t", "--out", "o", "--dtype", "float16"], "--dtype is for targets"),
        (["model", "--out", "o", "--bits", "7"], "'7' is not one of '2', '3', '4', '5', '6', '8',"),
        (["model", "--out", "o", "--group-size", "48"], "'48' is not one of '16', '32', '64'"),
        (["model", "--out", "o", "--dtype", "int8"], "'int8' is not one of 'float16', 'bfloat16'"),
        (["model", "--out", "o", "--mode", "q4"], "'q4' is not one of 'affine', 'mxfp4', 'nvfp4'"),
        (["model", "--out", "o", "--mode", "mxfp4", "--bits", "8"], "has 4 bits in groups of 32"),
        (["model", "--out", "o", "--group-size", "16"], "affine has 2, 3, 4, 5, 6 or 8 bits in"),
        (
            ["model", "--out", "o", "--bits", "none", "--mode", "nvfp4"],
            "--bits none leaves nothing",
        ),
    ],
)
def test_wrong_usage_has_status_2_and_says_what_is_right(
    arguments: list[str], message: str
) -> None:
    result = run(convert, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_existing_folder_is_refused(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(EagleError, match="exists and is never overwritten"):
        run(convert, fixtures / "pydoc-llama", "--out", tmp_path)


def test_names_that_are_no_folder_come_from_the_hub(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"org/head": fixtures / "pydoc-eagle3", "org/target": fixtures / "pydoc-llama"}
    asked: dict[str, Any] = {}

    def fetch(name: str, *, progress: Any, only: Any) -> Path:
        asked[name] = only
        return folders[name]

    monkeypatch.setattr("mlx_eagle.hub.download.fetch", fetch)
    result = run(convert, "org/head", "--target", "org/target", "--out", tmp_path / "h")
    assert result.exit_code == 0
    assert describe_folder(tmp_path / "h")["source"]["name"] == "pydoc-eagle3"
    assert asked == {"org/head": None, "org/target": ["config.json"]}


def test_converted_head_is_described_with_every_choice_and_its_provenance(
    converted: tuple[Path, Result],
) -> None:
    out, _ = converted
    facts = json.loads(run(inspect, out, "--json").stdout)
    config = json.loads((out / "config.json").read_text())
    assert facts == describe_folder(out)
    assert facts["kind"] == "converted EAGLE-3 head"
    assert facts["converted"] is True
    for key in [*HeadConfig.from_dict(config).to_dict(), "quantization", "source", "target"]:
        assert facts[key] == config[key], key
    assert facts["bytes"] == (out / "model.safetensors").stat().st_size


def test_parameters_are_counted_alike_before_and_after_quantization(
    fixtures: Path, converted: tuple[Path, Result]
) -> None:
    shapes = mx.load(str(fixtures / "pydoc-llama" / "model.safetensors"))
    assert describe_folder(fixtures / "pydoc-llama")["parameters"] == sum(
        a.size for a in shapes.values()
    )
    published = describe_folder(fixtures / "pydoc-eagle3")
    assert published["parameters"] == describe_folder(converted[0])["parameters"] == 1_639_424


def test_published_head_and_target_are_described(fixtures: Path) -> None:
    head = describe_folder(fixtures / "pydoc-eagle3")
    assert head | {"kind": "SafeAILab EAGLE-3 head", "role": "head", "converted": False} == head
    assert head["convertible"] is True
    assert (head["widths"]["hidden"], head["widths"]["draft"]) == (256, 2048)
    resolved = describe_folder(fixtures / "pydoc-eagle3", fixtures / "pydoc-llama")
    assert (resolved["taps"], resolved["fits"], resolved["suspicious"]) == ([2, 4, 5], True, [])
    assert resolved["origins"]["taps"].startswith("default")
    assert head["types"] == {"F16": 13, "I64": 1, "BOOL": 1}
    target = describe_folder(fixtures / "pydoc-llama")
    sizes = {"model_type": "llama", "num_hidden_layers": 8, "hidden_size": 256, "vocab_size": 4096}
    assert target | sizes | {"kind": "Hugging Face target", "quantization": None} == target


def test_head_that_cannot_be_converted_is_described_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"speculators_model_type": "dflash2"}))
    file = str(tmp_path / "model.safetensors")
    mx.save_safetensors(file, {"0.0.linear.weight": mx.ones((2, 2))})
    facts = describe_folder(tmp_path)
    assert facts["convertible"] is False
    assert facts["kind"] == "DFlash 2 block head"
    assert "selector of candidates" in facts["reason"]
    (tmp_path / "config.json").write_text("{}")
    mx.save_safetensors(file, {"midlayer.mlp.up_proj.weight": mx.ones((2, 2))})
    assert "missing norm.weight" in describe_folder(tmp_path)["reason"]


def test_description_as_text_is_one_fact_a_line_without_control_characters(tmp_path: Path) -> None:
    config = {
        "model_type": "mlx_eagle_head",
        "source": {"name": "\x1b[31mred", "files": [[[[[[["deep"]]]]]]]},
        "algorithm": "eagle3",
        "taps": [2, 4, 5],
        "origins": {"taps": "a guess\x1b[31m"},
        "doubts": {"taps": {"reason": "no ids", "alternatives": [[3, 5, 6]]}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"x": mx.ones((2, 3))})
    lines = run(inspect, tmp_path).stdout.splitlines()
    assert lines[0] == f"{tmp_path.name}: converted EAGLE-3 head"
    assert "  taps                        2; 4; 5  (a guess?[31m)" in lines
    assert "  in doubt: taps, or reason no ids, alternatives 3; 5; 6" in lines
    assert "  source.name                 ?[31mred" in lines
    assert "  source.files                ..." in lines
    assert "  parameters                  6" in lines


def test_folder_without_a_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        run(inspect, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weights"):
        run(inspect, tmp_path)
    with pytest.raises(HubError, match="there is no folder"):
        run(inspect, tmp_path / "nowhere")


def test_help_and_inspect_import_neither_mlx_lm_nor_torch(fixtures: Path) -> None:
    program = (
        "import sys\n"
        "from mlx_eagle.cli import convert, inspect\n"
        "assert not {'mlx', 'numpy', 'mlx_lm'} & set(sys.modules)\n"
        "inspect.command([sys.argv[1]], standalone_mode=False)\n"
        "assert not {'mlx_lm', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(fixtures / "pydoc-eagle3")]
    # Without the tests' own start of Python, which keeps PyTorch out.
    env = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pydoc-eagle3: SafeAILab EAGLE-3 head\n")


def test_fact_can_be_decided_by_hand(fixtures: Path, tmp_path: Path) -> None:
    head, target = fixtures / "pydoc-eagle3", fixtures / "pydoc-llama"
    options = ("--set", "taps=1,3,6", "--set", "rope_theta=5e5", "--set", "norm_output=true")
    result = run(convert, head, "--target", target, "--out", tmp_path / "h", *options)
    assert result.exit_code == 0
    facts = describe_folder(tmp_path / "h")
    assert (facts["taps"], facts["rope_theta"], facts["norm_output"]) == ([1, 3, 6], 5e5, True)
    assert facts["origins"]["taps"] == "set by the user"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("taps=1,3", "taps are [1, 3]"),
        ("taps=1,3,12", "taps are [1, 3, 12]"),
        ("taps=true", "taps are list (set by the user)"),
        ("norm_output=1", "norm_output is 1"),
        ("rope_theta=-1", "rope_theta is -1"),
        ("mask_token_id=3", "needs a mask_token_id of the target, if it drafts in"),
        ("rope_theta=1e300", "rope_theta is 1e+300"),
        ('rope_scaling={"rope_type":"yarn"}', "lacks factor"),
        ("hidden_size=7", "hidden_size cannot be set; what can be is"),
        ('rope_scaling={"rope_type":"bogus"}', "bogus"),
    ],
)
def test_impossible_decision_is_refused_and_nothing_is_written(
    fixtures: Path, tmp_path: Path, setting: str, message: str
) -> None:
    options = ("--target", fixtures / "pydoc-llama", "--out", tmp_path / "h", "--set", setting)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        run(convert, fixtures / "pydoc-eagle3", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["taps", "taps=", "norm_output=maybe", "taps=one"])
def test_decision_that_is_no_value_is_wrong_usage(setting: str) -> None:
    result = run(convert, "head", "--target", "t", "--out", "o", "--set", setting)
    assert result.exit_code == 2
    assert f"--set {setting}" in result.stderr


@pytest.mark.parametrize("option", [("--set", "taps=1"), ("--doctor",)])
def test_options_of_heads_need_a_target(option: tuple[str, ...]) -> None:
    result = run(convert, "model", "--out", "o", *option)
    assert result.exit_code == 2
    assert re.search(rf"{option[0]}.* is for heads, which need --target as well", result.stderr)


@pytest.mark.usefixtures("short_doctor")
@pytest.mark.broad
def test_calibration_corrects_what_was_set_wrong(fixtures: Path, tmp_path: Path) -> None:
    head, target = fixtures / "pydoc-eagle3", fixtures / "pydoc-llama"
    options = ("--set", "norm_before_residual=true", "--calibrate", "--head-bits", "none")
    result = run(convert, head, "--target", target, "--out", tmp_path / "h", *options)
    assert result.exit_code == 0
    assert "norm_before_residual no: 1." in result.stdout
    facts = describe_folder(tmp_path / "h")
    assert facts["norm_before_residual"] is False
    assert facts["calibration"]["acceptance_length"] > 2


def test_inspect_says_what_does_not_fit_the_target(
    fixtures: Path, tmp_path: Path, converted: tuple[Path, Result]
) -> None:
    config = json.loads((fixtures / "pydoc-llama" / "config.json").read_text())
    other = config | {"hidden_size": 512, "num_hidden_layers": 9, "eos_token_id": 99}
    (tmp_path / "config.json").write_text(json.dumps(other))
    published = run(inspect, fixtures / "pydoc-eagle3", "--target", tmp_path, "--json")
    facts = json.loads(published.stdout)
    assert (facts["convertible"], "hidden size 256, not 512" in facts["reason"]) == (False, True)
    ours = json.loads(run(inspect, converted[0], "--target", tmp_path, "--json").stdout)
    assert ours["fits"] is False
    assert "hidden_size is 512, not 256" in ours["reason"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 99}))
    suspicious = describe_folder(fixtures / "pydoc-eagle3", tmp_path)["suspicious"]
    assert suspicious == ["eos_token_id is 2, the target's 99: another tokenizer?"]
