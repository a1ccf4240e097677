"""Rows that are kept between conversations give the texts that reading anew gives."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from kept_rows import ANSWER, BLOCK, N_TOKENS, ask, draw, files_of
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.files.safetensors import checksum
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.session import identity, prefix_cache
from mlx_eagle.session.prefix_cache import PrefixCache
from mlx_eagle.session.prefix_files import PrefixFiles
from mlx_eagle.session.rows_folder import prefix_folder
from mlx_eagle.speculation import ON
from mlx_eagle.target.target import Target
from mlx_eagle.target.tokenizer import read_tokenizer
from recurrent_pair import make_recurrent_pair
from served import close_files
from turning_pair import make_turning_engine


@pytest.fixture
def engine(keeping: Engine) -> Engine:
    """An engine that keeps nothing yet."""
    return keeping


def fresh(engine: Engine, ids: list[int], **options: Any) -> list[int]:
    """What the engine answers where nothing is kept."""
    kept, engine.prefix_cache = engine.prefix_cache, None
    tokens: list[int] = ask(engine, ids, **options).tokens
    engine.prefix_cache = kept
    return tokens


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(engine: Engine) -> None:
    engine.keep_prefixes(1 << 30)
    first = draw(1, 100)
    result = ask(engine, first)
    longer = [*first, *result.tokens, *draw(2, 10)]
    again = ask(engine, longer)
    assert again.tokens == fresh(engine, longer)
    assert again.stats.cached_tokens >= 100
    branch = [*first[:60], *draw(3, 20)]
    other = ask(engine, branch)
    assert other.tokens == fresh(engine, branch)
    assert other.stats.cached_tokens == 59


def test_rows_are_the_same_whatever_was_asked_before(engine: Engine, is_quick: bool) -> None:
    """Turns, branches, prompts anew, in memory for three conversations and on disk."""
    engine.keep_prefixes(1 << 30, 1 << 30)
    rng = random.Random(7)
    ask(engine, draw(0, 150))
    assert engine.prefix_cache is not None
    size = max(engine.prefix_cache.nbytes, 1)
    engine.prefix_cache = PrefixCache(3 * size, engine.prefix_cache.files)
    texts = [draw(0, 150)]
    tiers = set()
    for turn in range(6 if is_quick else 500):
        base = rng.choice(texts)
        ids = [*base[: rng.choice([len(base), len(base) // 2, 40])], *draw(turn, rng.randrange(30))]
        options = {"speculate": rng.random() < 0.8, "seed": turn, "temperature": rng.choice([0, 1])}
        session = engine.session()
        stream = session.stream_generate(ids, max_tokens=N_TOKENS, **options)
        tokens = [response.token for response in stream]
        engine.prefix_cache.keep(session.prefix)
        tiers.add(session.prefix.hit.tier)
        assert tokens == fresh(engine, ids, **options)
        assert engine.prefix_cache.nbytes <= 3 * size
        texts = [*texts[-4:], [*ids, *tokens]]
    assert "memory" in tiers


@pytest.fixture
def written(engine: Engine) -> list[int]:
    """A prompt whose rows an earlier run has written to disk."""
    ids = draw(5, 120)
    engine.keep_prefixes(0, 1 << 30)
    ask(engine, ids)
    close_files(engine)
    assert len(list(prefix_folder().glob("*/*/*.safetensors"))) == 3
    return ids


def hit_of(engine: Engine, ids: list[int]) -> tuple[int, bool]:
    """Return how many tokens were found, and whether the text is right."""
    result = ask(engine, ids)
    return result.stats.cached_tokens, result.tokens == fresh(engine, ids)


def test_another_run_finds_what_was_read_on_disk(engine: Engine, written: list[int]) -> None:
    engine.keep_prefixes(0, 1 << 30)
    assert hit_of(engine, written) == (7 * BLOCK - 1, True)
    branch = [*written[:70], *draw(6, 30)]
    assert hit_of(engine, branch) == (4 * BLOCK - 1, True)
    assert hit_of(engine, draw(8, 60)) == (0, True)
    folder = prefix_folder()
    assert {file.stat().st_mode & 0o777 for file in folder.glob("*/*/*.safetensors")} == {0o600}


def test_rows_without_drafts_are_found_on_disk_where_nothing_is_drafted(engine: Engine) -> None:
    """As where drafting does not pay; with drafts the head must have read the prompt as well."""
    ids = draw(5, 120)
    for speculates, held in ((False, 0), (False, 7 * BLOCK - 1), (True, 0), (True, 7 * BLOCK - 1)):
        engine.keep_prefixes(0, 1 << 30)
        result = ask(engine, ids, speculate=speculates)
        assert (result.stats.cached_tokens, result.tokens) == (held, fresh(engine, ids))
        close_files(engine)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def swap_tokens(path: Path) -> None:
    """Change a token and keep the checksum right: only the comparison can tell."""
    arrays, about = mx.load(str(path), format="safetensors", return_metadata=True)  # type: ignore
    tokens = arrays["tokens"]
    arrays["tokens"] = mx.concatenate([tokens[1:2], tokens[1:]])
    about["crc32"] = checksum(arrays)
    mx.save_safetensors(str(path), arrays, about)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, swap_tokens, empty])
def test_damaged_files_are_removed_and_texts_stay_right(
    damage: Any, engine: Engine, written: list[int]
) -> None:
    newest = max(prefix_folder().glob("*/*/*.safetensors"), key=lambda file: file.stat().st_size)
    damage(newest)
    engine.keep_prefixes(0, 1 << 30)
    n_found, is_right = hit_of(engine, written)
    assert is_right
    assert n_found < 7 * BLOCK - 1
    assert files_of(engine).n_damaged >= 1


def test_rows_of_other_caches_devices_and_salts_are_not_found(
    engine: Engine, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = engine.with_kv(KVOptions(8, 32))
    other.keep_prefixes(0, 1 << 30)
    assert ask(other, written).stats.cached_tokens == 0
    close_files(other)
    engine.keep_prefixes(0, 1 << 30, salt="somebody else")
    assert ask(engine, written).stats.cached_tokens == 0
    close_files(engine)
    machine = identity.this_machine()
    monkeypatch.setattr(identity, "this_machine", lambda: machine | {"device": "other"})
    monkeypatch.delitem(vars(engine), "identity")
    engine.keep_prefixes(0, 1 << 30)
    assert ask(engine, written).stats.cached_tokens == 0


def test_what_an_interrupted_run_left_is_removed_and_a_second_run_only_reads(
    engine: Engine, written: list[int]
) -> None:
    folder = next(prefix_folder().glob("*/*"))
    left = folder.parent / "ab"
    left.mkdir()
    (left / ".0123.partial.safetensors").write_bytes(b"half")
    engine.keep_prefixes(0, 1 << 30)
    assert not (left / ".0123.partial.safetensors").exists()
    assert files_of(engine).n_interrupted == 1
    second = PrefixFiles(prefix_folder(), engine.identity, 1 << 30)
    assert not second.writes
    assert second.longest(written) == 7 * BLOCK


@pytest.mark.parametrize("tier", [broad("memory"), "disk"])
def test_rows_of_one_client_are_not_found_by_another(tier: str, engine: Engine) -> None:
    engine.keep_prefixes(1 << 30 if tier == "memory" else 0, 0 if tier == "memory" else 1 << 30)
    ids, found = draw(30, 100), []
    for salt in ("", "a", "b", "a", "b", ""):
        session = engine.session()
        session.prefix.salt = salt
        tokens = [r.token for r in session.stream_generate(ids, **ANSWER)]
        assert tokens == fresh(engine, ids)
        assert engine.prefix_cache is not None
        engine.prefix_cache.keep(session.prefix)
        found.append(session.prefix.hit.tier)
    assert found == ["", "", "", tier, tier, tier]


def test_states_are_gone_back_to_at_the_ends_of_the_last_prompts_and_never_written(
    keeping: Engine,
) -> None:
    """A branch goes on from the newest end of a prompt before it; one before both reads anew."""
    tokenizer = read_tokenizer(DEMO / "target", None)
    model, head = make_recurrent_pair(4096, list(range(500, 900)))
    info = EngineInfo("states", "float32", "states", "float32", ON, "cpu", False)
    engine = Engine(Target(model, taps=head.config.taps), tokenizer, head, info)
    assert engine.target.chains_only
    asked, session, ends = draw(40, 60), engine.session(), [60, 60 + N_TOKENS + 20]
    asked += [r.token for r in session.stream_generate(asked, **ANSWER)]
    asked += draw(41, 20)
    asked += [r.token for r in session.stream_generate(asked, **ANSWER)]
    for place, held in ((ends[1] + 2, ends[1]), (ends[0] + 2, ends[0]), (ends[0] - 10, 1)):
        engine.keep_prefixes(1 << 30)
        assert engine.prefix_cache is not None
        engine.prefix_cache.keep(session.fork().prefix)
        branch = [*asked[:place], *draw(50 + place, 10)]
        again = engine.session()
        tokens = [r.token for r in again.stream_generate(branch, **ANSWER)]
        assert (again.prefix.hit.rows, tokens) == (held - 1, fresh(engine, branch))
    engine.keep_prefixes(0, 1 << 30)
    for _ in range(2):
        assert ask(engine, asked).stats.cached_tokens == files_of(engine).nbytes == 0
    close_files(engine)


def test_rows_that_no_prompt_could_use_again_are_not_kept(engine: Engine) -> None:
    """Those of mlx-lm's own caches; of exact rows, less than a chunk of prefill."""
    stock = Engine(
        Target(engine.target.model, speculate=False), engine.tokenizer, None, engine.info
    )
    for own, is_exact in ((stock, False), (engine, True), (engine, False)):
        own.keep_prefixes(1 << 30, exact=is_exact)
        ask(own, draw(8, 150))
        assert own.prefix_cache is not None
        assert len(own.prefix_cache) == (own is engine and not is_exact)


def test_a_conversation_of_the_library_writes_its_rows_too(engine: Engine) -> None:
    engine.keep_prefixes(0, 1 << 30)
    session = engine.session("Be brief. " * 20)
    for _ in session.ask("What does zip do?", **ANSWER):
        pass
    close_files(engine)
    engine.keep_prefixes(0, 1 << 30)
    later = engine.session("Be brief. " * 20)
    last = list(later.ask("What does map do?", **ANSWER))[-1]
    assert last.stats is not None
    assert last.stats.cached_tokens > 2 * BLOCK


@pytest.fixture
def half(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine in 16 bits that uses exact rows only, in chunks that are small."""
    monkeypatch.setattr(prefix_cache, "STEP", 2 * BLOCK)
    own = make_turning_engine()
    own.target.model.set_dtype(mx.float16)
    yield own
    close_files(own)


def rows_of(engine: Engine, ids: list[int]) -> tuple[Any, dict[str, Any], int]:
    """Return an answer, the rows of its prompt as bytes, and how many of them were kept."""
    session = engine.session()
    tokens = [r.token for r in session.stream_generate(ids, **ANSWER)]
    arrays = session.prefix.arrays()
    bits = {
        name: bytes(memoryview(mx.contiguous(a[:, :, : len(ids) - 1]).view(mx.uint16)))
        for name, a in arrays.items()
        if name.startswith("target.")
    }
    assert engine.prefix_cache is not None
    engine.prefix_cache.keep(session.prefix)
    return tokens, bits, session.prefix.hit.rows


def test_exact_rows_are_those_of_reading_anew_to_the_last_bit(half: Engine) -> None:
    """Warm, after a branch and from disk: each prompt is computed in the pieces of a cold one."""
    first = draw(8, 150)
    half.keep_prefixes(1 << 30, 1 << 30, exact=True)
    tokens, _, _ = rows_of(half, first)
    longer, branch = [*first, *tokens, *draw(9, 60)], [*first[:100], *draw(10, 40)]
    warm = {len(ids): rows_of(half, ids) for ids in (longer, branch)}
    assert (warm[len(longer)][2], warm[len(branch)][2]) == (128, 96)
    close_files(half)
    half.keep_prefixes(0, 1 << 30, exact=True)  # as after a restart
    again = rows_of(half, longer)
    assert again[2] == 192
    close_files(half)
    for ids in (longer, branch):
        half.keep_prefixes(1 << 30, exact=True)  # nothing is kept yet
        cold = rows_of(half, ids)
        assert cold[2] == 0
        assert cold[:2] == warm[len(ids)][:2]
        assert ids is branch or cold[:2] == again[:2]
