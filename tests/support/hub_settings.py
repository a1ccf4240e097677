"""huggingface_hub with other settings for a while, in the process of the tests.

It reads them from the environment when its constants are imported, and everything looks them up
there: they are read again. A process of its own would need half a second for that.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

SETTINGS = ("HF_", "HUGGING")


def settings_for(url: str, home: Path, **more: str) -> dict[str, str]:
    """Return the settings under which `url` is the hub and `home` holds what was fetched of it."""
    return {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | more


def environment_for(url: str, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a program under such settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return kept | settings_for(url, home, **more)


@contextlib.contextmanager
def hub_at(url: str, home: Path, **more: str) -> Iterator[None]:
    """Let `url` be the hub, whose files are kept in `home`; more settings by their names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(SETTINGS)]:
            patch.delenv(name)
        for name, value in settings_for(url, home, **more).items():
            patch.setenv(name, value)
        importlib.reload(constants)
        try:
            yield
        finally:
            close_session()  # or its connection outlives the server of the test
    importlib.reload(constants)
