"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from stemma.files import write_whole


def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OSError) as caught, write_whole(path) as temporary:
        temporary.write_text("half")
        Path("/dev/full").write_text("the rest")
    assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
