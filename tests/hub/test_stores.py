"""Models of Ollama and LM Studio by their names there, in folders made up as these have them."""

import json
from pathlib import Path

import pytest

from mlx_eagle.errors import HubError
from mlx_eagle.hub.stores import find_in_store

DIGEST = "sha256:" + "ab" * 32
MODEL = "application/vnd.ollama.image.model"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path


def add_ollama(
    root: Path,
    where: str = "registry.ollama.ai/library/tiny/latest",
    *,
    digest: object = DIGEST,
    kinds: tuple[str, ...] = (MODEL,),
    has_blob: bool = True,
) -> Path:
    """Add a model to Ollama's folder, and return its blob."""
    layers = [{"mediaType": kind, "digest": digest, "size": 4} for kind in kinds]
    manifest = root / "manifests" / where
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blob = root / "blobs" / DIGEST.replace(":", "-")
    blob.parent.mkdir(exist_ok=True)
    if has_blob:
        blob.write_bytes(b"GGUF")
    return blob


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("tiny", "registry.ollama.ai/library/tiny/latest"),
        ("tiny:1b-q4_0", "registry.ollama.ai/library/tiny/1b-q4_0"),
        ("someone/tiny", "registry.ollama.ai/someone/tiny/latest"),
        ("hf.co/owner/tiny-GGUF:Q4_K_M", "hf.co/owner/tiny-GGUF/Q4_K_M"),
    ],
)
def test_model_of_ollama_is_found_by_its_name(name: str, where: str, home: Path) -> None:
    blob = add_ollama(home / ".ollama" / "models", where)
    assert find_in_store(f"ollama:{name}") == blob


def test_folder_that_the_environment_names_counts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "elsewhere"))
    blob = add_ollama(home / "elsewhere")
    assert find_in_store("ollama:tiny") == blob


def test_store_that_is_not_here_says_so(home: Path) -> None:
    with pytest.raises(HubError, match=r"Ollama has no models in .*\.ollama/models"):
        find_in_store("ollama:tiny")
    with pytest.raises(HubError, match=r"LM Studio has no models here: .*\.lmstudio/models"):
        find_in_store("lmstudio:tiny")


def test_model_that_ollama_does_not_have_says_what_there_is(home: Path) -> None:
    add_ollama(home / ".ollama" / "models")
    with pytest.raises(
        HubError, match="has no other in .*; it has 'tiny': get it with ollama pull"
    ):
        find_in_store("ollama:other")
    with pytest.raises(HubError, match="has no tiny:8b in .*; it has the tags 'latest' of it"):
        find_in_store("ollama:tiny:8b")


@pytest.mark.parametrize(
    "name", ["../x", "", "a/b/c/d", "x:../y", "/etc/passwd", "x/..", "~x", "x" * 300]
)
def test_name_that_leaves_the_folder_or_is_none_is_refused(name: str, home: Path) -> None:
    add_ollama(home / ".ollama" / "models")
    with pytest.raises(HubError, match="is no name: they look like"):
        find_in_store(f"ollama:{name}")


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "ab" * 31, "md5:" + "ab" * 32, 7, None]
)
def test_digest_that_is_none_is_refused(digest: object, home: Path) -> None:
    add_ollama(home / ".ollama" / "models", digest=digest)
    with pytest.raises(HubError, match="has the digest .*, no sha256"):
        find_in_store("ollama:tiny")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ((), "has 0 GGUF files, expected one"),
        ((MODEL, MODEL), "has 2 GGUF files, expected one"),
        ((MODEL, "application/vnd.ollama.image.adapter"), "a model with an adapter"),
    ],
)
def test_model_that_is_no_single_file_is_refused(
    kinds: tuple[str, ...], message: str, home: Path
) -> None:
    add_ollama(home / ".ollama" / "models", kinds=kinds)
    with pytest.raises(HubError, match=message):
        find_in_store("ollama:tiny")


def test_manifest_that_is_none_and_blob_that_is_missing_are_refused(home: Path) -> None:
    root = home / ".ollama" / "models"
    add_ollama(root, has_blob=False)
    with pytest.raises(HubError, match="not complete: get the rest with ollama pull tiny"):
        find_in_store("ollama:tiny")
    (root / "manifests/registry.ollama.ai/library/tiny/latest").write_text("[")
    with pytest.raises(HubError, match="manifest of tiny cannot be read"):
        find_in_store("ollama:tiny")


def add_lm_studio(home: Path, *files: str) -> Path:
    root = home / ".lmstudio" / "models"
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"GGUF")
    return root


@pytest.mark.parametrize(
    "name",
    ["owner/tiny-GGUF/tiny.Q4_0.gguf", "tiny.Q4_0.gguf", "tiny.q4_0", "owner/tiny-gguf", "tiny"],
)
def test_model_of_lm_studio_is_found_by_any_part_of_its_path(name: str, home: Path) -> None:
    root = add_lm_studio(home, "owner/tiny-GGUF/tiny.Q4_0.gguf", "owner/tiny-GGUF/mmproj-x.gguf")
    assert find_in_store(f"lmstudio:{name}") == root / "owner/tiny-GGUF/tiny.Q4_0.gguf"


def test_folder_of_mlx_that_lm_studio_has_is_found(home: Path) -> None:
    root = add_lm_studio(home, "mlx-community/tiny-4bit/config.json")
    assert find_in_store("lmstudio:tiny-4bit") == root / "mlx-community/tiny-4bit"


def test_name_that_means_several_models_is_refused(home: Path) -> None:
    add_lm_studio(home, "owner/tiny-GGUF/tiny.Q4_0.gguf", "owner/tiny-GGUF/tiny.Q8_0.gguf")
    with pytest.raises(HubError, match=r"may mean .*Q4_0.gguf', .*Q8_0.gguf': write it out"):
        find_in_store("lmstudio:tiny")
    with pytest.raises(HubError, match="LM Studio has no other; it has 'owner/tiny-GGUF"):
        find_in_store("lmstudio:other")


@pytest.mark.parametrize("name", ["owner/model", "path/to/x.gguf", "vllm:x", "C:\\models"])
def test_other_names_are_of_no_store(name: str) -> None:
    assert find_in_store(name) is None
