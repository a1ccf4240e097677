"""Models come here before they are loaded: Ctrl-C must reach a download."""

from typing import TYPE_CHECKING

from mlx_eagle.cli.terminal.display import Loading, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mlx_eagle.cli.options import ModelSource


def fetch_models(source: "ModelSource", console: "Console") -> None:
    """Bring models here, and convert a head, before the prompt: Ctrl-C must reach that."""
    name = source.model or source.head
    if name is None or name == "none":
        return  # the demo pair, or its target alone
    from mlx_eagle.hub.download import fetch
    from mlx_eagle.hub.head_choice import choose_head

    with Loading(console) as loading:
        folder = fetch(name, progress=loading.update)
        if source.model is not None:
            choose_head(
                source.model,
                source.head,
                folder,
                progress=loading.update,
                notify=lambda line: console.print(printable(line)),
            )
