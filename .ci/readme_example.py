"""Writes each ```python block of a Markdown file into a file of its own: python readme_example.py README.md folder."""

import re
import sys
from pathlib import Path

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def extract(markdown: Path, folder: Path) -> list[Path]:
    """
    Write the Python blocks of a Markdown file, unchanged.

    :param markdown: The Markdown file.
    :param folder: Where to write example_1.py, example_2.py, ...; made if it is missing.
    :return: The files written, in the order of the blocks.
    """
    blocks = PYTHON_BLOCK.findall(markdown.read_text(encoding="utf-8"))
    if not blocks:
        raise SystemExit(f"{markdown} has no ```python block; the check of the examples needs at least one.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"example_{number}.py" for number in range(1, len(blocks) + 1)]
    for path, block in zip(paths, blocks, strict=True):
        path.write_text(block, encoding="utf-8")
    return paths


if __name__ == "__main__":
    for written in extract(Path(sys.argv[1]), Path(sys.argv[2])):
        print(written)
