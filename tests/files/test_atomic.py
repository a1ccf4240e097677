"""Folders and files appear whole or not at all, however the writing ends."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file, new_folder


def everything_in(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


def test_folder_appears_at_the_end_with_all_its_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with new_folder(out) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("1")
        assert not out.exists()
        assert partial.parent == tmp_path  # where the rename stays on one disk
    assert everything_in(tmp_path) == ["new", "new/out", "new/out/sub", "new/out/sub/a"]
    assert (out / "sub" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "new" / "out") as partial:
            (partial / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert everything_in(tmp_path) == []


def test_existing_folder_file_or_link_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = everything_in(tmp_path)
    for name in before:
        with (
            pytest.raises(EagleError, match=f"{name} exists and is never overwritten"),
            new_folder(tmp_path / name),
        ):
            pytest.fail("the block ran")
    assert everything_in(tmp_path) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(EagleError, match="out exists"), new_folder(out):
        out.mkdir()
    assert everything_in(tmp_path) == ["out"]


def test_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(EagleError, match=r"cannot write .*out: Not a directory"),
        new_folder(tmp_path / "file" / "out"),
    ):
        pytest.fail("the block ran")


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from mlx_eagle.files.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'a').write_text('1'); print('writing', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(everything_in(tmp_path)) == 2
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert everything_in(tmp_path) == []


def test_writing_works_outside_the_main_thread_and_restores_the_handler(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out"):
            pass

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "out").is_dir()
    with new_folder(tmp_path / "other"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_file_is_replaced_whole_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text in ("1", "2"):
        with new_file(file, mode=0o600) as partial:
            assert partial.parent == tmp_path and partial.name.startswith(".")
            assert partial.suffix == ".json"
            partial.write_text(text)
            assert not file.exists() or file.read_text() == "1"
        assert file.read_text() == text
        assert file.stat().st_mode & 0o777 == 0o600
    assert everything_in(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failure_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("mine")

    def fail() -> None:
        with new_file(tmp_path / "a", suffix=".safetensors") as partial:
            assert partial.suffix == ".safetensors"
            partial.write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert everything_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "mine"
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "none" / "a"):
        pytest.fail("the block ran")


def test_c7_what_cannot_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    with (
        pytest.raises(EagleError, match=r"source\.bin: No such file"),
        new_folder(tmp_path / "out"),
    ):
        (tmp_path / "source.bin").read_bytes()
    with (
        pytest.raises(EagleError, match=r"cannot write .*out: "),
        new_folder(tmp_path / "out") as part,
    ):
        (part / "missing" / "file").write_text("1")
    assert everything_in(tmp_path) == []
