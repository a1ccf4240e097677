"""The pictures of docs/lineage.md: as the script draws them, and true to their trees."""

import re
from pathlib import Path

from benchmark_modules import load_benchmark
from mlx_eagle.static_tree import StaticTree

FOLDER = Path(__file__).parents[1] / "docs" / "lineage"
lineage_pictures = load_benchmark("lineage_pictures")


def kinds(picture: str) -> list[str]:
    """Return what became of every token of a picture."""
    return re.findall(r'<g class="(\w+)"><rect [^>]*/><text class="token"', picture)


def test_the_pictures_in_the_documents_are_what_the_script_draws() -> None:
    drawn = lineage_pictures.pictures()
    kept = {file.stem: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.svg")}
    assert kept == drawn
    text = (FOLDER.parent / "lineage.md").read_text()
    assert all(f"(lineage/{name}.svg)" in text for name in drawn)


def test_the_target_goes_on_with_the_same_text_whatever_was_drafted() -> None:
    for name, picture in lineage_pictures.pictures().items():
        if name == "hass":
            continue
        found = kinds(picture)
        n_accepted = found.count("accepted")
        spans = re.findall(r'<tspan class="ink-\w+">([^<]*)</tspan>', picture)
        assert spans == ["`", *lineage_pictures.TRUTH[: n_accepted + 1]], name
        assert found.count("root") == found.count("target") == 1
    assert len(kinds(lineage_pictures.pictures()["eagle1"])) == 27, "26 nodes, and what follows"


def test_the_dynamic_tree_has_the_largest_products() -> None:
    sure = {(): (0.5, 0.4), (0,): (0.9, 0.1), (1,): (0.2,)}
    assert lineage_pictures.likeliest(sure, 3) == [(0,), (1,), (0, 0)]
    chosen = lineage_pictures.likeliest(lineage_pictures.SURE, lineage_pictures.NODES)
    assert StaticTree.of(chosen).n_nodes >= len(chosen) + 1
