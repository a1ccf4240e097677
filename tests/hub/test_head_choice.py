"""Published heads: converted once and kept, taken by themselves where known, never silently.

Downloads come from the fake hub.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlx_eagle
from hub_settings import hub_at
from mlx_eagle.errors import CheckpointError, EagleError, HubError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.hub import head_choice as published
from mlx_eagle.hub.head_choice import choose_head, prepare_head
from mlx_eagle.hub.known_heads import KnownHead
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.tree import TreeShape

TARGET = DEMO / "target"
HEAD_FILES = ("config.json", "pytorch_model.bin")
KNOWN = KnownHead("owner/model", ("a/b",), "SafeAILab", "recommended", "-", (), None, "")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, which does not exist yet."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def raw(fixtures: Path, tmp_path: Path) -> Path:
    """The fixture head as its publisher left it, in a folder that a test may spoil."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in HEAD_FILES:
        shutil.copyfile(fixtures / "pydoc-eagle3" / name, folder / name)
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that conversions are written to, which write two empty files instead."""
    folders: list[Path] = []

    def convert(source: Path, target: Path, out: Path, **options: Any) -> None:
        write_conversion(out)
        folders.append(out)

    monkeypatch.setattr("mlx_eagle.convert.heads.convert_head", convert)
    return folders


def write_conversion(out: Path) -> None:
    """Make what looks like a finished conversion."""
    out.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (out / name).write_text("{}")


def load(
    url: str, home: Path, patch: pytest.MonkeyPatch, *, head: str | None = None, **env: str
) -> dict[str, Any]:
    """Load the demo target with the hub at `url` and owner/model as its known head.

    Returns what the engine says of it, and what was told, each line with the number of pickles that
    had been fetched by then.
    """
    told: list[tuple[str, int]] = []

    def notify(line: str) -> None:
        told.append((line, sum(file.is_file() for file in home.rglob("*.bin"))))

    patch.setattr(published, "default_head", lambda target: KNOWN)
    with hub_at(url, home, **env):
        try:
            engine = mlx_eagle.load(TARGET, head, calibrate=False, notify=notify)
        except HubError as error:
            return {"error": str(error), "told": told}
    stats = engine.generate("def f", max_tokens=4, tree=TreeShape.chain(2)).stats
    facts = {"head": engine.info.head, "speculation": stats.speculation}
    return facts | {"drafted": stats.drafted, "told": told}


def publish(hub: Any, folder: Path) -> int:
    """Put a folder on the fake hub as owner/model; returns its size in bytes."""
    hub.files = {name: (folder / name).read_bytes() for name in HEAD_FILES}
    return sum(map(len, hub.files.values()))


def test_a_converted_head_is_used_where_it_is(cache: Path) -> None:
    assert prepare_head(DEMO / "head", TARGET) == DEMO / "head"
    assert not cache.exists()


def test_a_published_head_is_converted_once_and_kept_under_its_name(raw: Path, cache: Path) -> None:
    told: list[str] = []
    out = prepare_head(raw, TARGET, notify=told.append)
    assert out.parent == cache / "heads"
    assert out.name.startswith("raw-")
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["quantization"]["bits"]) == ("mlx_eagle_head", 4)
    assert told == [f"converting raw, once; it is kept in {out}"]
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert prepare_head(raw, TARGET, notify=told.append) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert len(told) == 1


def test_a_raw_head_that_the_user_names_just_works(raw: Path) -> None:
    told: list[str] = []
    engine = mlx_eagle.load(TARGET, raw, notify=told.append, calibrate=False)
    assert (engine.info.speculation, engine.info.head) == ("on", str(raw))
    assert engine.info.head_precision == "4-bit, group 64"
    assert engine.generate("def f", max_tokens=8, tree=TreeShape.chain(2)).stats.drafted > 0
    assert len(told) == 1


def test_a_conversion_is_made_anew_when_anything_it_depends_on_changes(
    raw: Path, made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(TARGET, tmp_path / "target"))
    prepare_head(raw, target)
    prepare_head(raw, target)
    assert len(made) == 1
    prepare_head(raw, target, bits=8)
    prepare_head(raw, target, bits=None)
    assert len(made) == 3
    os.utime(raw / "pytorch_model.bin", ns=(1, 1))
    prepare_head(raw, target)
    (raw / "config.json").write_text((raw / "config.json").read_text() + " ")
    prepare_head(raw, target)
    (raw / "pytorch_model-2.bin").touch()
    prepare_head(raw, target)
    assert len(made) == 6
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": 4000}))
    prepare_head(raw, target)
    monkeypatch.setattr(published, "FORMAT_VERSION", 999)
    prepare_head(raw, target)
    assert len(set(made)) == len(made) == 8


def test_the_weights_of_the_target_do_not_matter_for_a_conversion(
    raw: Path, made: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(TARGET / "config.json", tmp_path / "elsewhere" / "config.json")
    first = prepare_head(raw, TARGET)
    assert prepare_head(raw, tmp_path / "elsewhere") == first


def test_in_the_hub_s_cache_the_checksum_counts_and_not_the_date(
    raw: Path, made: list[Path], tmp_path: Path
) -> None:
    repository = tmp_path / "models--owner--model"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, name in enumerate(HEAD_FILES):
        shutil.copyfile(raw / name, blobs / f"{n}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"{n}")
    first = prepare_head(snapshot, TARGET)
    assert first.name.startswith("owner--model-")
    os.utime(blobs / "1", ns=(1, 1))
    assert prepare_head(snapshot, TARGET) == first
    (blobs / "1").rename(blobs / "2")
    (snapshot / HEAD_FILES[1]).unlink()
    (snapshot / HEAD_FILES[1]).symlink_to("../../blobs/2")
    assert prepare_head(snapshot, TARGET) != first


def test_the_name_of_a_conversion_is_a_plain_file_name(
    raw: Path, made: list[Path], tmp_path: Path, cache: Path
) -> None:
    for name in ("...a b\n", "-x;rm", "ü"):
        out = prepare_head(Path(shutil.copytree(raw, tmp_path / name)), TARGET)
        assert out.parent == cache / "heads"
        assert out.name.isascii() and out.name.isprintable()
        assert out.name[0] not in ".-" and " " not in out.name


def test_a_process_that_comes_second_takes_what_the_first_one_made(
    raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_eagle.convert import heads

    convert = heads.convert_head
    ends: list[Path] = []

    def convert_late(source: Path, target: Path, out: Path, **options: Any) -> None:
        with monkeypatch.context() as context:
            context.setattr(heads, "convert_head", convert)
            ends.append(prepare_head(source, target))  # another process begins and ends meanwhile
        convert(source, target, out, **options)

    monkeypatch.setattr(heads, "convert_head", convert_late)
    assert prepare_head(raw, TARGET) == ends[0]
    assert [path.name for path in (cache / "heads").iterdir()] == [ends[0].name]


@pytest.mark.broad  # the test before this one has both in one process
def test_two_processes_at_once_end_with_one_whole_folder(raw: Path, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlx_eagle.hub.head_choice import prepare_head;"
        "print(prepare_head(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(raw), str(TARGET)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert [str(path) for path in (cache / "heads").iterdir()] == list(folders)
    assert list(cache.parent.glob(".*")) == []
    assert mlx_eagle.load(TARGET, folders.pop(), calibrate=False).info.speculation == "on"


def test_a_head_that_cannot_be_converted_leaves_nothing_and_says_why(
    raw: Path, cache: Path
) -> None:
    weights = (raw / "pytorch_model.bin").read_bytes()
    (raw / "pytorch_model.bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError):
        mlx_eagle.load(TARGET, raw, notify=lambda line: None)
    assert not cache.exists() or list((cache / "heads").glob("*")) == []


def test_a_conversion_of_which_a_part_was_deleted_is_named(raw: Path, made: list[Path]) -> None:
    out = prepare_head(raw, TARGET)
    (out / "model.safetensors").unlink()
    with pytest.raises(EagleError, match=r"lacks model\.safetensors: remove the folder"):
        prepare_head(raw, TARGET)


@pytest.mark.parametrize(
    ("platform", "env", "folder"),
    [
        ("darwin", {}, "~/Library/Caches/mlx-eagle"),
        ("linux", {}, "~/.cache/mlx-eagle"),
        ("linux", {"XDG_CACHE_HOME": "/var/tmp/x"}, "/var/tmp/x/mlx-eagle"),
        ("darwin", {"XDG_CACHE_HOME": "/var/tmp/x"}, "~/Library/Caches/mlx-eagle"),
        ("darwin", {"MLX_EAGLE_CACHE": "~/heads"}, "~/heads"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, platform: str, env: dict[str, str], folder: str
) -> None:
    for name in ("MLX_EAGLE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == Path(folder).expanduser()


def test_head_none_is_no_head_though_one_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "default_head", lambda target: pytest.fail("looked up"))
    engine = mlx_eagle.load(TARGET, "none")
    assert engine.info.speculation == "off: no head was wanted"
    assert engine.info.head == ""
    assert mlx_eagle.load(head="none").info.speculation == "off: no head was wanted"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("somebody/model", "no head is known for somebody/model"),
        (TARGET, "no head was given"),
        ("google/gemma-4-12B-it", "deepseek-ai/eagle3_gemma4_12b_ttt7 is unsupported: its layer"),
    ],
)
def test_without_a_usable_head_nothing_is_fetched_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, model: str | Path, reason: str
) -> None:
    monkeypatch.setattr(published, "fetch", lambda *args, **options: pytest.fail("fetched"))
    choice = choose_head(model, None, TARGET)
    assert choice.folder is None
    assert choice.reason.startswith(reason)


def test_a_known_head_is_taken_and_its_size_told_before_the_first_byte(
    fake_hub: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = publish(fake_hub, raw)
    facts = load(fake_hub.url, tmp_path / "home", monkeypatch)
    assert (facts["speculation"], facts["head"]) == ("on", "owner/model")
    assert facts["drafted"] > 0
    (fetching, n_files), (converting, _) = facts["told"]
    assert fetching.startswith(f"owner/model is the known head for {TARGET}: fetching")
    assert f"{size / 1e6:,.1f} MB" in fetching
    assert n_files == 0
    assert converting.startswith("converting owner/model, once")
    again = load("http://127.0.0.1:9", tmp_path / "home", monkeypatch, HF_HUB_OFFLINE="1")
    assert again == facts | {"told": []}


def test_the_library_tells_on_stderr_by_itself(
    fake_hub: Any,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    publish(fake_hub, raw)
    monkeypatch.setattr(published, "default_head", lambda target: KNOWN)
    with hub_at(fake_hub.url, tmp_path / "home"):
        assert mlx_eagle.load(TARGET, calibrate=False).info.speculation == "on"
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["owner/model", "converting"]


def test_a_known_head_that_cannot_be_had_is_no_error_and_a_named_one_is(
    fake_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.refusals["/api"] = (404, "RepoNotFound")
    facts = load(fake_hub.url, tmp_path / "home", monkeypatch)
    assert facts["speculation"].startswith("off: the hub has no model owner/model")
    assert (facts["head"], facts["drafted"], facts["told"]) == ("", 0, [])
    facts = load(fake_hub.url, tmp_path / "home", monkeypatch, head="owner/model")
    assert facts["error"].startswith("the hub has no model owner/model")


def test_without_a_network_a_known_head_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = load("http://127.0.0.1:9", tmp_path / "home", monkeypatch)
    assert "cannot be reached and owner/model is not" in facts["speculation"]


def test_offline_what_is_not_cached_is_not_asked_for(
    fake_hub: Any, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(fake_hub, raw)
    facts = load(fake_hub.url, tmp_path / "home", monkeypatch, HF_HUB_OFFLINE="1")
    assert facts["speculation"].startswith("off: owner/model is not completely in the cache")
    assert fake_hub.requests == []


def test_a_known_head_that_does_not_fit_is_left_out_by_name(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((raw / "config.json").read_text())
    (raw / "config.json").write_text(json.dumps(config | {"vocab_size": 5000}))
    know(monkeypatch, raw)
    info = mlx_eagle.load(TARGET, notify=lambda line: None).info
    assert info.speculation.startswith("off: owner/model: ")
    assert info.head == info.head_precision == ""
    with pytest.raises(CheckpointError):
        mlx_eagle.load(TARGET, raw, notify=lambda line: None)


def test_a_known_head_that_does_not_load_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Path(shutil.copytree(DEMO / "head", tmp_path / "head"))
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(config | {"taps": [2, 4, 11]}))
    know(monkeypatch, head)
    engine = mlx_eagle.load(TARGET, calibrate=False)
    assert engine.info.speculation.startswith("off: owner/model: the head taps boundary 11")
    plain = mlx_eagle.load(TARGET, "none").generate("def f", max_tokens=8)
    assert engine.generate("def f", max_tokens=8).tokens == plain.tokens
    with pytest.raises(EagleError, match="taps boundary 11"):
        mlx_eagle.load(TARGET, head)


def know(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make owner/model the known head of every target, and let `folder` be its download."""
    known = KnownHead("owner/model", ("a/b",), "SafeAILab", "usable", "-", (), None, "")
    fetch = published.fetch
    downloads = {"owner/model": folder}
    monkeypatch.setattr(published, "default_head", lambda target: known)
    monkeypatch.setattr(
        published, "fetch", lambda name, **options: downloads.get(str(name)) or fetch(name)
    )


def test_a_named_head_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(HubError, match="there is no folder /no/such/head"):
        mlx_eagle.load(TARGET, "/no/such/head")
