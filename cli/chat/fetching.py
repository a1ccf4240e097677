"""Downloads and conversions before the prompt, on the terminal's thread, where Ctrl-C ends them."""

from typing import TYPE_CHECKING

from mlx_eagle.cli.terminal.display import Loading, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_eagle.cli.options import ModelSource


def fetch_models(source: "ModelSource", console: "Console") -> None:
    """Download target and head, and convert the head, as far as that is still to be done."""
    name = source.model or source.head
    if name is None or name == "none":
        return  # the demo pair, or its target alone
    from mlx_eagle.hub.download import fetch
    from mlx_eagle.hub.fit import fit_check
    from mlx_eagle.hub.head_choice import choose_head

    def notify(line: str) -> None:
        console.print(printable(line))

    with Loading(console) as loading:
        if source.model is None:
            fetch(name, progress=loading.update, notify=notify)
            return
        before = fit_check(source.model, source.head, source.loading, notify)
        folder = fetch(name, progress=loading.update, notify=notify, before=before)
        choose_head(source.model, source.head, folder, progress=loading.update, notify=notify)
