"""Loading: what fits together, what is refused and how it is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlx_eagle
from cases import broad
from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.errors import CheckpointError, EagleError, HubError
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.tree import TreeShape


@pytest.fixture
def demo_head(tmp_path: Path) -> Path:
    """A copy of the demo head that a test may spoil."""
    return Path(shutil.copytree(DEMO / "head", tmp_path / "head"))


@pytest.fixture
def demo_target(tmp_path: Path) -> Path:
    """A copy of the demo target that a test may spoil."""
    return Path(shutil.copytree(DEMO / "target", tmp_path / "target"))


def edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_the_demo_pair_loads_without_arguments_and_speculates(demo: Any) -> None:
    info = demo.info
    assert info.is_demo
    assert (info.target_precision, info.head_precision) == ("8-bit, group 64", "4-bit, group 64")
    assert info.speculation == "on"


def test_a_target_without_a_head_decodes_plainly_and_says_why() -> None:
    engine = mlx_eagle.load(DEMO / "target")
    assert engine.info.speculation == "off: no head was given"
    result = engine.generate("def f", max_tokens=5)
    assert result.stats.speculation == "off: no head was given"
    assert result.stats.drafted == 0


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="it describes the CPU backend")
def test_on_a_cpu_sixteen_bits_are_computed_in_float32(demo: Any) -> None:
    floats = {
        value.dtype
        for network in (demo.target.model, demo.head)
        for _, value in tree_flatten(network.parameters())
        if mx.issubdtype(value.dtype, mx.floating)
    }
    assert floats == {mx.float32}


@pytest.mark.parametrize("dtype", [broad("float16"), "bfloat16", "float32"])
def test_head_and_target_compute_in_the_same_type(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether trees are verified is not asked here, and takes seconds in 16 bits.
    monkeypatch.setattr("mlx_eagle.pairing.check_tree_verification", lambda target: None)
    engine = mlx_eagle.load(dtype=dtype, calibrate=False)
    drafter = engine.session().prefix.drafter
    assert drafter is not None
    taps = engine.target.extend(mx.array([5, 6, 7]), engine.target.make_cache())
    assert taps is not None
    assert str(taps.dtype).endswith(dtype)
    drafter.observe(taps, mx.array([6, 7, 8]))
    assert all(str(buffer.dtype).endswith(dtype) for buffer in drafter.buffers)
    assert len(engine.generate("def f", max_tokens=2, ignore_eos=True).tokens) == 2


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EagleError, match="dtype is 'int4'.*float32, float16, bfloat16"):
        mlx_eagle.load(dtype="int4")


@pytest.mark.usefixtures("small_toy_pair")
def test_progress_reports_every_step_of_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))  # where nothing is on record yet
    monkeypatch.setattr("mlx_eagle.calibration.measure.CONTEXTS", (64, 128))
    monkeypatch.setattr("mlx_eagle.calibration.measure.ROWS", (1, 2, 3, 4))
    monkeypatch.setattr("mlx_eagle.calibration.measure.MOST_SAMPLES", 3)
    seen: list[tuple[str, int, int]] = []
    mlx_eagle.load(progress=lambda *step: seen.append(step))
    loading = [step for step in seen if step[0] == "load"]
    measuring = [step for step in seen if step[0] == "calibrate"]
    assert loading == [("load", 0, 2), ("load", 1, 2), ("load", 2, 2)]
    assert seen == [*loading, *measuring] and measuring[-1][1] == measuring[-1][2]


def test_a_head_for_another_target_is_refused_with_both_sizes(demo_target: Path) -> None:
    weights = mx.load(str(demo_target / "model.safetensors"))
    for name in ("model.embed_tokens", "lm_head"):
        for part in ("weight", "scales", "biases"):
            weights[f"{name}.{part}"] = weights[f"{name}.{part}"][:4000]
    mx.save_safetensors(str(demo_target / "model.safetensors"), weights, {"format": "mlx"})
    edit(demo_target, vocab_size=4000)
    with pytest.raises(CheckpointError, match=r"another target: vocabulary 4096 \(target: 4000\)"):
        mlx_eagle.load(demo_target, DEMO / "head")


def test_a_head_that_taps_beyond_the_target_is_refused(demo_head: Path) -> None:
    edit(demo_head, taps=[2, 4, 10])
    with pytest.raises(EagleError, match="taps boundary 10.*boundaries 0 to 8"):
        mlx_eagle.load(DEMO / "target", demo_head)


def test_a_head_given_as_the_target_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a target that mlx-lm can load"):
        mlx_eagle.load(DEMO / "head")


def test_a_folder_that_does_not_exist_is_named() -> None:
    with pytest.raises(HubError, match="/nowhere/at/all"):
        mlx_eagle.load("/nowhere/at/all")


def test_code_in_a_target_is_never_run(demo_target: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    (demo_target / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')\n")
    edit(demo_target, model_file="evil.py")
    with pytest.raises(CheckpointError, match=r"evil\.py"):
        mlx_eagle.load(demo_target)
    assert not sentinel.exists()


def test_a_missing_tensor_of_the_target_is_named(demo_target: Path) -> None:
    weights = mx.load(str(demo_target / "model.safetensors"))
    weights.pop("model.norm.weight")
    mx.save_safetensors(str(demo_target / "model.safetensors"), weights, {"format": "mlx"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        mlx_eagle.load(demo_target)


def test_a_truncated_weight_file_is_refused(demo_target: Path) -> None:
    file = demo_target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a sound"):
        mlx_eagle.load(demo_target)


def test_a_head_that_is_run_wrongly_suggests_the_doctor_once(
    demo_head: Path, demo_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadWatch, "PATIENCE", 20)
    edit(demo_head, norm_before_residual=True, taps=[1, 3, 6], rope_theta=77.0)
    engine = mlx_eagle.load(demo_target, demo_head, calibrate=False)
    question = [{"role": "user", "content": "List the functions of the module os."}]
    options = {"ignore_eos": True, "tree": TreeShape.chain(1)}
    answers = [engine.generate(question, max_tokens=n, **options) for n in (25, 4)]
    advice = [answer.stats.advice for answer in answers]
    told = [line for line in advice if line]
    assert len(told) == 1
    assert f"mlx-eagle doctor {demo_head} --target {demo_target} --fix" in told[0]
