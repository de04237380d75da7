"""Writes the ```python blocks of a Markdown file into files: python readme_example.py README.md folder [python bash]."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = {"python": "py", "bash": "sh"}
NAME = re.compile(r"# (\w+\.py)\n")


def extract(markdown: Path, folder: Path, languages: Sequence[str] = ("python",)) -> list[Path]:
    """
    Write the blocks of a Markdown file, unchanged.

    :param markdown: The Markdown file.
    :param folder: Where to write them; made if it is missing. A block that begins with a comment ``# shop.py`` is named so,
        for later blocks to import. The others are example_1.py, example_2.py, ... by their order
    :param languages: Which blocks: python, bash
    :return: The files written, in the order of the blocks.
    """
    fence = re.compile(rf"^```({'|'.join(languages)})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = fence.findall(markdown.read_text(encoding="utf-8"))
    if not blocks:
        raise SystemExit(f"{markdown} has no block of {' or '.join(languages)}; the check of the examples needs at least one.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (language, block) in enumerate(blocks, start=1):
        name = NAME.match(block)
        paths.append(folder / (name[1] if name else f"example_{number}.{SUFFIXES[language]}"))
        paths[-1].write_text(block, encoding="utf-8")
    return paths


if __name__ == "__main__":
    for written in extract(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or ("python",)):
        print(written)
