"""Saved conversations: what comes back, and what is refused with the reason."""

import json
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from doubles import Letters, make_engine
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.session.limits import Limits
from mlx_eagle.session.prompt import Template
from mlx_eagle.target.ropes import rotate_as_announced
from mlx_eagle.tree import TreeShape

TREE = TreeShape.chain(3)


@pytest.fixture(scope="module")
def written(turning: Engine, prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a conversation of one turn, which stays as it is."""
    file = tmp_path_factory.mktemp("written") / "talk"
    session = turning.session(system="Be brief.")
    list(session.ask(prompts[1], max_tokens=14, tree=TREE))
    session.save(file)
    return file


@pytest.fixture
def saved(written: Path, tmp_path: Path) -> Path:
    """A file with a conversation of one turn, which a test may spoil."""
    return Path(shutil.copy2(written, tmp_path / "talk"))


def test_a_loaded_conversation_goes_on_without_reading_anything_again(
    saved: Path, turning: Engine, prompts: list[str]
) -> None:
    session = turning.load_session(saved)
    assert session.system == "Be brief."
    assert [m["role"] for m in session.messages] == ["user", "assistant"]
    *_, last = got = list(session.ask(prompts[2], max_tokens=14, tree=TREE))
    system = [{"role": "system", "content": "Be brief."}]
    want = turning.generate([*system, *session.messages[:3]], max_tokens=14, tree=TREE)
    assert [r.token for r in got] == want.tokens
    assert last.stats.n_accepted_per_round == want.stats.n_accepted_per_round
    assert last.stats.cached_tokens > 30


def test_a_file_from_another_process_is_the_same(demo: Engine, tmp_path: Path) -> None:
    """Weights are known by what they are, not by where or when they were loaded."""
    import subprocess
    import sys

    code = (
        "import sys, mlx_eagle\n"
        "session = mlx_eagle.load(calibrate=False).session()\n"
        "list(session.ask('why', max_tokens=4))\n"
        "session.save(sys.argv[1])\n"
    )
    file = tmp_path / "talk"
    subprocess.run([sys.executable, "-c", code, str(file)], cwd=tmp_path, check=True)
    session = demo.load_session(file)
    messages = [*session.messages, {"role": "user", "content": "how"}]
    got = list(session.ask("how", max_tokens=6))
    assert [r.token for r in got] == demo.generate(messages, max_tokens=6).tokens
    assert got[-1].stats.cached_tokens, "its rows are of use"


@pytest.mark.parametrize("kv", [KVOptions(bits=8, group_size=32), broad(KVOptions(max_size=64))])
def test_other_caches_come_back_too_and_only_to_such_caches(
    kv: KVOptions, saved: Path, turning: Engine, prompts: list[str], tmp_path: Path
) -> None:
    engine = turning.with_kv(kv)
    session = engine.session()
    list(session.ask(prompts[1], max_tokens=30, tree=TREE))
    session.save(tmp_path / "other")
    again = engine.load_session(tmp_path / "other")
    want = [r.token for r in session.ask(prompts[2], max_tokens=10, tree=TREE)]
    assert [r.token for r in again.ask(prompts[2], max_tokens=10, tree=TREE)] == want
    for loader, file in [(engine, saved), (turning, tmp_path / "other")]:
        with pytest.raises(EagleError, match="saved with another KV cache"):
            loader.load_session(file)


def test_a_head_with_a_window_that_has_moved_comes_back(
    turning: Engine, prompts: list[str], tmp_path: Path
) -> None:
    engine = Engine(
        turning.target, turning.tokenizer, turning.head, turning.info, limits=Limits(head_window=32)
    )
    session = engine.session()
    list(session.ask(" ".join(prompts[:2]), max_tokens=14, tree=TREE))
    session.save(tmp_path / "talk")
    again = engine.load_session(tmp_path / "talk")
    want, got = (list(s.ask(prompts[2], max_tokens=12, tree=TREE)) for s in (session, again))
    assert [r.token for r in got] == [r.token for r in want]
    assert got[-1].stats.n_accepted_per_round == want[-1].stats.n_accepted_per_round
    with pytest.raises(EagleError, match="another head window"):
        turning.load_session(tmp_path / "talk")


def test_an_older_file_is_replaced_at_once_or_not_at_all(
    saved: Path, turning: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(EagleError, match="cannot write .*No space left"):
            turning.session().save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["talk"]
    turning.session().save(saved)
    assert turning.load_session(saved).messages == []
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b", "n" * 300, "file/x", "folder", "no/where"])
def test_a_name_that_cannot_be_a_file_is_one_clear_error(
    name: str, turning: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for action in (turning.session().save, turning.load_session):
        with pytest.raises(EagleError, match=r"is not|cannot write"):
            action(name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_link_is_followed_and_a_long_name_is_possible(turning: Engine, tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for file in (tmp_path / "link", tmp_path / ("n" * 250)):
        turning.session().save(file)
        assert turning.load_session(file).messages == []
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_is_not_there_is_one_clear_error(turning: Engine, tmp_path: Path) -> None:
    with pytest.raises(EagleError, match="cannot write"):
        turning.session().save(tmp_path / "nowhere" / "talk")
    with pytest.raises(EagleError, match="is not a file"):
        turning.load_session(tmp_path / "nothing")


def test_another_head_or_target_is_named(
    saved: Path, turning: Engine, tiny_target: Callable[..., Any], head_config: HeadConfig
) -> None:
    headless = Engine(turning.target, turning.tokenizer, None, turning.info)
    with pytest.raises(EagleError, match="saved with another head .*none"):
        headless.load_session(saved)
    other = make_engine(tiny_target("llama"), head_config, Letters())
    with pytest.raises(EagleError, match="saved with another target"):
        other.load_session(saved)


def reach(model: Any, max_context: int) -> None:
    """Let a model turn as one does whose rope has other factors for long texts (LongRoPE)."""
    short, long = [1.0] * 8, [4.0] * 8
    facts = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long}
    facts["original_max_position_embeddings"] = 64
    config = vars(model.args) | {"rope_parameters": facts, "max_position_embeddings": 256}
    assert rotate_as_announced(model, config, max_context), "plain rope was replaced"


def test_rows_of_another_rope_are_computed_again(
    tiny_target: Callable[..., Any], head_config: HeadConfig, tmp_path: Path
) -> None:
    engines = []
    for max_context in (64, 256):
        reach(model := tiny_target("llama"), max_context)
        engines.append(make_engine(model, head_config, Letters()))
    short, long = engines
    assert short.identity["target"] == long.identity["target"], "rope has no weights"
    session = short.session()
    list(session.stream_generate([5, 9, 17, 3] * 8, max_tokens=8, tree=TREE))
    session.save(tmp_path / "talk")
    prompt = [*session.prefix.tokens, 9]
    for engine, is_reused in ((short, True), (long, False)):
        *_, last = got = list(
            engine.load_session(tmp_path / "talk").stream_generate(prompt, max_tokens=8, tree=TREE)
        )
        want = engine.generate(prompt, max_tokens=8, tree=TREE)
        assert [r.token for r in got] == want.tokens
        assert (last.stats.cached_tokens > 0) == is_reused


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a safetensors file."""
    data = file.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])


def about(header: dict[str, Any], **changes: Any) -> None:
    facts = json.loads(header["__metadata__"]["about"]) | changes
    header["__metadata__"]["about"] = json.dumps(facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(version="9"), "has version 9, this is version 2"),
        (lambda h: h["__metadata__"].update(format="x"), "is not a saved conversation"),
        (lambda h: h["__metadata__"].update(about="{"), "is damaged"),
        (lambda h: about(h, messages=[5]), "does not describe a conversation"),
        (lambda h: about(h, messages=[{"content": "x"}]), "does not describe a conversation"),
        (lambda h: about(h, messages=[{"role": 5, "content": "x"}]), "does not describe a conv"),
        (lambda h: about(h, template=[]), "does not describe a conversation"),
        (lambda h: about(h, template={"tools": 5}), "does not describe a conversation"),
        (lambda h: about(h, system=5), "does not describe a conversation"),
        (lambda h: about(h, identity={"target": 5}), "does not describe a conversation"),
        (lambda h: about(h, rows=10**6), "is damaged: it has 1000000 rows"),
        (lambda h: about(h, rows=5), "is damaged"),
        (lambda h: about(h, head_rows=1), "is damaged"),
        (lambda h: about(h, rows="5"), "does not say how many rows"),
        (lambda h: h.update({"target.99.keys": h.pop("target.0.keys")}), "its checksum is wrong"),
        (lambda h: h.pop("__metadata__"), "is not a saved conversation"),
    ],
)
def test_a_file_of_another_kind_or_version_is_refused_with_the_reason(
    change: Callable[[dict[str, Any]], None], message: str, saved: Path, turning: Engine
) -> None:
    rewrite(saved, change)
    with pytest.raises(EagleError, match=message):
        turning.load_session(saved)


def test_random_damage_never_gets_past_a_typed_error(saved: Path, turning: Engine) -> None:
    """100 files with bytes changed, cut off or added; what loads says what the sound one does."""
    rng, sound = random.Random(7), saved.read_bytes()
    held = turning.load_session(saved).prefix
    tokens, values = held.tokens, held.cache.layers[3].values
    refused = 0
    for _ in range(100):
        data = bytearray(sound)
        kind = rng.randrange(3)
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            data += bytes(rng.randrange(1, 50))
        else:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(rng.choice([4000, len(data)]))] = rng.randrange(256)
        saved.write_bytes(bytes(data))
        try:
            session = turning.load_session(saved)
        except EagleError:
            refused += 1
        else:
            assert session.prefix.tokens == tokens
            assert mx.array_equal(session.prefix.cache.layers[3].values, values)
    assert refused > 90


def test_a_loaded_conversation_no_longer_needs_its_file(saved: Path, turning: Engine) -> None:
    session = turning.load_session(saved)
    want = [r.token for r in turning.load_session(saved).ask("why", max_tokens=8)]
    saved.unlink()
    assert [r.token for r in session.ask("why", max_tokens=8)] == want


def test_messages_of_every_kind_come_back_and_what_is_no_json_is_refused(
    turning: Engine, tmp_path: Path
) -> None:
    call = {"type": "function", "id": "a", "function": {"name": "add", "arguments": {"a": 1}}}
    session = turning.session(template_args={"x": [1]}, tools=[{"function": {"name": "add"}}])
    session.messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "content": None},
    ]
    session.save(tmp_path / "talk")
    loaded = turning.load_session(tmp_path / "talk")
    assert (loaded.messages, loaded.template) == (session.messages, session.template)
    for wrong in ("\ud800", 10**50, float("nan"), {1, 2}):
        session.messages[0] = {"role": "user", "content": "x", "extra": wrong}
        with pytest.raises(EagleError, match="cannot be saved as JSON"):
            session.save(tmp_path / "talk")
    assert turning.load_session(tmp_path / "talk").messages == loaded.messages


def test_what_was_given_at_load_holds_in_loaded_conversations(
    turning: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = turning.session(template_args={"b": 2})
    session.save(tmp_path / "talk")
    monkeypatch.setattr(turning, "template", Template({"a": 1, "b": 1}))
    assert turning.load_session(tmp_path / "talk").template.args == {"a": 1, "b": 2}


def test_a_file_of_the_first_version_is_read(saved: Path, turning: Engine) -> None:
    expected = turning.load_session(saved).messages

    def first(header: dict[str, Any]) -> None:
        facts = json.loads(header["__metadata__"]["about"])
        del facts["template"]
        header["__metadata__"] |= {"version": "1", "about": json.dumps(facts)}

    rewrite(saved, first)
    assert turning.load_session(saved).messages == expected
