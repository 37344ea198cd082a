"""The house stays one in which a part is found: small files, few to a folder."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
MOST_LINES, MOST_FILES = 350, 16


def test_files_are_short_and_folders_hold_few():
    files = [file for file in SOURCE.rglob("*.py") if "__pycache__" not in file.parts]
    assert len(files) > 200
    long = {str(file): len(file.read_text().splitlines()) for file in files}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}
    counts = {folder: sum(file.parent == folder for file in files) for folder in {file.parent for file in files}}
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}
