"""A checkpoint on the hub of which parts are read: byte ranges of its files, and nothing else."""

import time
from collections.abc import Mapping
from functools import cached_property

from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import HfHubHTTPError

from mlx_eagle.errors import HubError
from mlx_eagle.hub.download import STRANGE_ANSWERS, NetworkError, Repo, explain, refuse_strange

ATTEMPTS = 3  # at a range whose connection breaks
WAIT = 1.0  # seconds before the next one


class RemoteCheckpoint:
    """The files of a repository, at the commit that its revision is now.

    Attributes:
        n_read: bytes of files that were read.
    """

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.n_read = 0

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.repo.name

    @cached_property
    def commit(self) -> str:
        """The commit, asked for once.

        Raises:
            HubError: if the hub cannot be asked.
        """
        try:
            found = HfApi().model_info(self.repo.id, revision=self.repo.revision).sha
        except (NetworkError, OSError) as error:
            raise HubError(explain(self.repo, error)) from error
        except STRANGE_ANSWERS as error:
            raise refuse_strange(self.repo) from error
        return str(found)

    @cached_property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file, by its path in the repository.

        Raises:
            HubError: if the hub cannot be asked.
        """
        try:
            tree = HfApi().list_repo_tree(self.repo.id, recursive=True, revision=self.commit)
            return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}
        except (NetworkError, OSError) as error:
            raise HubError(explain(self.repo, error)) from error
        except STRANGE_ANSWERS as error:
            raise refuse_strange(self.repo) from error

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end` of a file.

        Raises:
            HubError: if they cannot be had, or the server sends whole files alone.
        """
        if start == end:
            return b""
        for attempt in range(ATTEMPTS):
            try:
                data = self._request(file, start, end)
                break
            except HfHubHTTPError as error:
                raise HubError(explain(self.repo, error)) from error
            except (NetworkError, OSError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise HubError(explain(self.repo, error)) from error
                time.sleep(WAIT)
        self.n_read += len(data)
        return data

    def _request(self, file: str, start: int, end: int) -> bytes:
        """Ask for a range once."""
        url = hf_hub_url(self.repo.id, file, revision=self.commit)
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
            headers["Authorization"] = f"Bearer {token}"
        with get_session().stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise HubError(
                    f"the hub sends no parts of {self.repo.name} ({file}): it answered "
                    f"{response.status_code} to a range; download it whole and give its folder"
                )
            data: bytes = response.read()
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes of {end - start} arrived")
        return data
