"""Models that Ollama and LM Studio have on this machine, found by their names there.

Their folders are read and nothing else: no program of theirs is asked, nothing is downloaded or
changed. Names are `ollama:NAME[:TAG]` and `lmstudio:NAME`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mlx_eagle.errors import CheckpointError, HubError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.quoting import listed, quote, quote_value

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # longer ones are no names of files
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MODEL = "application/vnd.ollama.image.model"
_ADAPTER = "application/vnd.ollama.image.adapter"
_LM_STUDIO = ("~/.lmstudio/models", "~/.cache/lm-studio/models")


def find_in_store(name: str) -> Path | None:
    """Return where a model of another program is: a GGUF file, or a folder in MLX's format.

    Args:
        name: what the user gave; it begins with the program's name and a colon.

    Returns:
        Where it is; None if the name is not that of another program's model.

    Raises:
        HubError: if the program has no models here, not this one, or several that the name means.
    """
    store, colon, rest = name.partition(":")
    return _STORES[store](rest) if colon and store in _STORES else None


def _find_in_ollama(name: str) -> Path:
    """Return the blob that holds the weights of an Ollama model."""
    root = Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()
    path, _, tag = name.partition(":")
    parts = path.split("/")
    if not 1 <= len(parts) <= 3 or not all(map(_PART.fullmatch, [*parts, tag or "latest"])):
        raise HubError(f"ollama:{name} is no name: they look like ollama:llama3.2:1b")
    where = [*("registry.ollama.ai", "library")[: 3 - len(parts)], *parts]
    folder = root.joinpath("manifests", *where)
    if not (root / "manifests").is_dir():
        raise HubError(f"Ollama has no models in {root} (OLLAMA_MODELS names another folder)")
    manifest = folder / (tag or "latest")
    if not manifest.is_file():
        raise HubError(f"Ollama has no {name} in {root}; {_others(folder, root / 'manifests')}")
    blob = root / "blobs" / f"sha256-{_weights_of(manifest, name)}"
    if not blob.is_file():
        raise HubError(f"ollama:{name} is not complete: get the rest with ollama pull {name}")
    return blob


def _others(folder: Path, manifests: Path) -> str:
    """Say which tags a model has, or which models there are."""
    tags = sorted(file.name for file in folder.glob("*") if file.is_file())
    if tags:
        return f"it has the tags {listed(map(quote, tags))} of it"
    names = sorted({file.parent.name for file in manifests.glob("*/*/*/*") if file.is_file()})
    return f"it has {listed(map(quote, names)) or 'none'}: get it with ollama pull"


def _weights_of(manifest: Path, name: str) -> str:
    """Return the digest of a model's weights, in hexadecimal."""
    try:
        stated = read_json(manifest).get("layers")
    except CheckpointError as error:
        raise HubError(f"Ollama's manifest of {name} cannot be read: {error}") from error
    layers = (
        [layer for layer in stated if isinstance(layer, dict)] if isinstance(stated, list) else []
    )
    kinds = [layer.get("mediaType") for layer in layers]
    if _ADAPTER in kinds:
        raise HubError(f"ollama:{name} is a model with an adapter, which is not read from there")
    if kinds.count(_MODEL) != 1:
        raise HubError(f"ollama:{name} has {kinds.count(_MODEL)} GGUF files, expected one")
    digest = layers[kinds.index(_MODEL)].get("digest")
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise HubError(
            f"Ollama's manifest of {name} has the digest {quote_value(digest)}, no sha256"
        )
    return found[1]


def _find_in_lm_studio(name: str) -> Path:
    """Return the model of LM Studio that a name means: of a folder, or of a file in it."""
    roots = [root for root in (Path(text).expanduser() for text in _LM_STUDIO) if root.is_dir()]
    if not roots:
        raise HubError(f"LM Studio has no models here: there is no {' and no '.join(_LM_STUDIO)}")
    models = {path: root for root in roots for path in _lm_studio_models(root)}
    found = [path for path, root in models.items() if name.casefold() in _names(path, root)]
    if not found:
        shown = listed(quote(str(path.relative_to(root))) for path, root in models.items())
        raise HubError(f"LM Studio has no {name}; it has {shown or 'none'}")
    if len(found) > 1:
        shown = listed(quote(str(path.relative_to(models[path]))) for path in found)
        raise HubError(f"lmstudio:{name} may mean {shown}: write it out")
    return found[0]


def _lm_studio_models(root: Path) -> list[Path]:
    """Return models: files publisher/model/name.gguf, and folders publisher/model of MLX's."""
    files = [file for file in root.glob("*/*/*.gguf") if not file.name.startswith("mmproj")]
    folders = [file.parent for file in root.glob("*/*/config.json")]
    return sorted(files + folders)


def _names(path: Path, root: Path) -> set[str]:
    """Return what a model may be called: by any of the last parts of its path."""
    parts = path.relative_to(root).parts
    names = {"/".join(parts), parts[-1], "/".join(parts[1:])}
    if path.suffix == ".gguf":
        names |= {path.stem, "/".join(parts[:2]), parts[1], parts[1].removesuffix("-GGUF")}
    return {name.casefold() for name in names}


_STORES: dict[str, Callable[[str], Path]] = {
    "ollama": _find_in_ollama,
    "lmstudio": _find_in_lm_studio,
}
