"""The process that tries few-row kernels: `python -m mlx_eagle.calibration.kernel_trial FOLDER`.

It reads the request that `kernel_request.py` has written, loads the target anew, whose weights are
read only as far as they are tried, and writes its answer when all is done.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx

from mlx_eagle.calibration.kernel_request import ACTIVATIONS, ANSWER, REQUEST
from mlx_eagle.files.atomic import new_file
from mlx_eagle.kernels.attention_trial import Heads, try_attention
from mlx_eagle.kernels.shapes import Shape
from mlx_eagle.kernels.sites import find_sites
from mlx_eagle.kernels.trial import Verdict, try_shape
from mlx_eagle.kernels.verdicts import Table, to_fields
from mlx_eagle.target.load import load_target


def main(place: Path) -> None:
    """Try the kernels of a request and write down the verdicts."""
    asked = json.loads((place / REQUEST).read_text())
    rows = mx.load(str(place / ACTIVATIONS))
    assert isinstance(rows, dict), "a safetensors file holds named arrays"
    adapter = Path(asked["adapter"]) if asked["adapter"] else None
    loaded, _ = load_target(Path(asked["folder"]), asked["dtype"], adapter=adapter)
    sites = find_sites(loaded.network)
    is_timed = asked["is_timed"]
    products: dict[Shape, list[Verdict]] = {}
    for i, fields in enumerate(asked["shapes"]):
        shape = Shape(
            **{k: v for k, v in fields.items() if k != "sites"} | {"ns": tuple(fields["ns"])}
        )
        matrices = [sites[index].weights for index in fields["sites"]]
        products[shape] = list(try_shape(shape, matrices, rows[str(i)], is_timed=is_timed))
    attention = {
        heads: list(try_attention(heads, is_timed=is_timed))
        for heads in (Heads(**fields) for fields in asked["heads"])
    }
    with new_file(place / ANSWER) as partial:
        partial.write_text(json.dumps(to_fields(Table(products, attention))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
