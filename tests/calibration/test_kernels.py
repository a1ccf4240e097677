"""The first use of few-row kernels on a machine: tried apart, kept, used only where they pay."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_eagle
from doubles import Letters, make_engine
from mlx_eagle.calibration import (
    kernel_forward,
    kernel_request,
    kernel_trial,
    kernels,
)
from mlx_eagle.calibration.kernels import Kernels, TargetSource
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.kernels import few_rows, gpu, shapes, trial
from mlx_eagle.kernels.sites import find_sites
from mlx_eagle.target.load import load_target
from mlx_eagle.target.target import Target
from mlx_eagle.tree_shape import TreeShape
from tiny_models import SMALL, build_target

ONE = shapes.Variant(2, 2, shapes.CONVERT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TargetSource:
    """A tiny target on disk, in 16 bits and 4."""
    folder = tmp_path_factory.mktemp("target")
    sizes = {"num_hidden_layers": 1, "hidden_size": 128}
    model = build_target("llama", **sizes)
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=32, bits=4)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    quantization = {"group_size": 32, "bits": 4}
    fields = {"model_type": "llama", **SMALL, **sizes, "quantization": quantization}
    (folder / "config.json").write_text(json.dumps(fields))
    for file in (DEMO / "target").glob("tokenizer*"):
        shutil.copy(file, folder)
    return TargetSource(folder, "float16", None)


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take this machine for an M2 whose cache folder is empty; one variant is tried."""
    monkeypatch.setattr(kernels, "gpu_generation", lambda: 14)
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "CANDIDATES", (ONE,))
    monkeypatch.setattr(trial, "ROWS", (4,))
    monkeypatch.setattr(kernel_request, "N_PREFIX", 4)
    monkeypatch.setattr(kernel_forward, "N_PREFIX", 4)
    for module in (kernels, kernel_trial):  # two layers are enough for the slow emulator
        monkeypatch.setattr(module, "find_sites", lambda model: find_sites(model)[:2])


@pytest.fixture
def in_process(apple: None, emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Try kernels in this process, where the emulator is."""
    monkeypatch.setattr(kernel_request, "_run", kernel_trial.main)


@pytest.fixture(scope="module")
def target(source: TargetSource) -> Iterator[Target]:
    loaded, _ = load_target(source.folder, source.dtype)
    target = Target(loaded.network)
    yield target
    target.release()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.metal
def test_forced_kernels_are_used_where_they_are_right_and_that_is_on_record(
    source: TargetSource, target: Target, in_process: None, said: list[str]
) -> None:
    found = Kernels(target, source, "force")
    found.put_on(said.append, may_try=True)
    assert found.status == "on for 4 rows"
    assert target.few_rows.rows == [4]
    assert len(said) == 2 and "few-row kernels" in said[0]
    target.few_rows.release()
    again = Kernels(target, source, "force")
    again.put_on(said.append, may_try=False)
    assert again.status == "on for 4 rows"
    assert len(said) == 2  # nothing is tried again
    target.few_rows.release()


@pytest.mark.metal
def test_a_wrong_kernel_leaves_those_of_mlx_with_one_line_that_says_why(
    source: TargetSource,
    target: Target,
    in_process: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = few_rows.text

    def wrong(name: str) -> str:
        return read(name).replace("for (int s = 0; s < SPLITS", "for (int s = 1; s < SPLITS")

    monkeypatch.setattr(few_rows, "text", wrong)
    found = Kernels(target, source, "force")
    found.put_on(said.append, may_try=True)
    assert target.few_rows.rows == []
    assert "wrong" in found.status
    assert [line for line in said if "wrong" in line] == [f"few-row kernels: {found.status}"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "a crash"),
        ("raise SystemExit('the GPU was lost')", "status 1 (the GPU was lost)"),
        ("import time; time.sleep(60)", "more than 1 s"),
        ("", "status 0"),  # without an answer
    ],
)
def test_a_trial_that_crashes_or_hangs_leaves_those_of_mlx(
    source: TargetSource,
    program: str,
    why: str,
    target: Target,
    apple: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_request, "command", lambda place: [sys.executable, "-c", program])
    monkeypatch.setattr(kernel_request, "TIME_LIMIT", 1)
    found = Kernels(target, source, "auto")
    found.put_on(said.append, may_try=True)
    assert target.few_rows.rows == []
    assert why in found.status
    assert said[-1] == f"few-row kernels: {found.status}"


@pytest.mark.metal
def test_kernels_whose_logits_differ_are_not_used(
    source: TargetSource,
    target: Target,
    in_process: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_forward, "ALIKE", 0.0)
    found = Kernels(target, source, "force")
    found.put_on(said.append, may_try=True)
    assert target.few_rows.rows == []
    assert "logits of 4 rows differ" in found.status


@pytest.mark.metal
def test_what_mlx_refuses_in_the_whole_forward_pass_leaves_those_of_mlx(
    source: TargetSource,
    target: Target,
    in_process: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[metal::Device] out of\nmemory")

    monkeypatch.setattr(kernels, "rows_that_pay", refuse)
    found = Kernels(target, source, "force")
    found.put_on(said.append, may_try=True)
    assert target.few_rows.rows == []
    assert found.status == "off: [metal::Device] out of memory"


@pytest.mark.metal
def test_kernels_that_do_not_make_a_forward_pass_faster_are_not_used(
    source: TargetSource,
    target: Target,
    in_process: None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "FASTER", 1e9)  # taken for faster alone, which the emulator is not
    monkeypatch.setattr(trial, "CHAINS", 1)
    monkeypatch.setattr(trial, "STEPS", 1)
    monkeypatch.setattr(kernel_forward, "PASSES", 1)
    monkeypatch.setattr(kernel_forward, "FASTER", 0.0)
    monkeypatch.setattr(kernel_forward, "FASTER", 0.0)
    found = Kernels(target, source, "auto")
    found.put_on(said.append, may_try=True)
    assert target.few_rows.rows == []
    assert found.status == "off: not faster than those of MLX here"
    assert found.found is not None and found.found.table


@pytest.mark.metal
def test_rounds_that_stall_are_kept_for_later_runs(
    source: TargetSource, target: Target, in_process: None, said: list[str]
) -> None:
    first = Kernels(target, source, "force")
    first.put_on(said.append, may_try=True)
    for seconds in [0.1] * 8 + [1.0, 1.0]:
        target.few_rows.watch(4, seconds)
    later = Kernels(target, source, "force")
    later.put_on(said.append, may_try=True)
    assert later.status == "off: rounds with them stalled"
    assert target.few_rows.rows == []
    later.try_out(said.append)
    assert later.status == "on for 4 rows"
    target.few_rows.release()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"version": 1, "kernels": {"table": 3}}'])
def test_a_damaged_record_counts_as_missing(
    source: TargetSource, damaged: str, target: Target, apple: None, said: list[str]
) -> None:
    found = Kernels(target, source, "auto")
    found._file.parent.mkdir(parents=True)
    found._file.write_text(damaged)
    found.put_on(said.append, may_try=False)
    assert found.status == "off: not tried on this machine yet (mlx-eagle calibrate does)"


def test_they_are_off_where_they_cannot_be(
    source: TargetSource, target: Target, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    assert "another device" in Kernels(target, source, "auto").status
    with pytest.raises(EagleError, match="forced, but they are for Apple GPUs"):
        Kernels(target, source, "force")
    monkeypatch.setattr(kernels, "gpu_generation", lambda: 17)
    newer = Kernels(target, source, "auto")
    newer.put_on(said.append, may_try=True)
    assert "--kernels force" in newer.status
    assert said == []
    assert Kernels(target, source, "off").status == "off"


def test_layers_in_float32_cannot_be_forced(
    source: TargetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "gpu_generation", lambda: 14)
    loaded, _ = load_target(DEMO / "target", "float32")
    with pytest.raises(EagleError, match="no layer of the target"):
        Kernels(Target(loaded.network), source, "force")


def test_the_generation_is_read_off_the_name_of_the_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gpu.gpu_generation() is None
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    for name, generation in {"applegpu_g13s": 13, "applegpu_g17p": 17, "other": None}.items():
        monkeypatch.setattr(mx, "device_info", lambda name=name: {"architecture": name})
        assert gpu.gpu_generation() == generation


@pytest.mark.metal
def test_an_answer_is_drafted_with_kernels_and_goes_on_without_them_after_a_stall(
    source: TargetSource, in_process: None, said: list[str], head_config: HeadConfig
) -> None:
    loaded, _ = load_target(source.folder, source.dtype)
    engine = make_engine(loaded.network, replace(head_config, taps=(0, 1)), Letters())
    engine.kernels = Kernels(engine.target, source, "force")
    engine.kernels.put_on(said.append, may_try=True)
    launched: list[int] = []
    served = engine.target.few_rows.watch
    engine.target.few_rows.watch = lambda n, s: (launched.append(n), served(n, s))
    options = {"max_tokens": 12, "tree": TreeShape.chain(3), "ignore_eos": True}
    assert engine.generate([1, 2, 3], **options).stats.generation_tokens == 12
    assert 4 in launched
    for seconds in [0.1] * 8 + [9.0, 9.0]:
        served(4, seconds)
    result = engine.generate([1, 2, 3], **options)
    assert result.stats.generation_tokens == 12
    assert "stalled" in result.stats.advice
    engine.target.release()


def test_kernels_cannot_be_forced_on_a_machine_without_them() -> None:
    with pytest.raises(EagleError, match="another device"):
        mlx_eagle.load(kernels="force", calibrate=False)
