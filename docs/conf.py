"""The site: ``make docs``. Its sources are the Markdown pages as they stand on GitHub; README.md is its home."""

from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = "sb3-hybrid-grpo"
author = "sb3-hybrid-grpo contributors"
copyright = author
release = (ROOT / "sb3_hybrid_grpo" / "version.txt").read_text(encoding="utf-8").strip()
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "benchmarks/**"]
exclude_patterns = ["docs/_build/**", "benchmarks/extensions/table.md"]  # a part of docs/results.md
templates_path = ["_templates"]
html_additional_pages = {"index": "index.html"}  # leads to the home page

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the signatures would be longer than the texts
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray"]  # the extra ray is not needed for the site

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

# GitHub's readers see README.md without it.
CONTENTS = """
```{toctree}
:hidden:
:caption: Begin
docs/install
docs/quickstart
docs/suitable_envs
docs/migration
docs/how_it_works
```

```{toctree}
:hidden:
:caption: Tutorials
docs/tutorials/inventory
docs/tutorials/wind
docs/tutorials/masks
docs/tutorials/c_simulator
docs/tutorials/tensorboard
```

```{toctree}
:hidden:
:caption: Guide
docs/arguments
docs/choosing
docs/reward_transforms
docs/branching
docs/hybrid_grpo
docs/rl_zoo
docs/envs
docs/speed
docs/fleets
docs/logging
docs/troubleshooting
```

```{toctree}
:hidden:
:caption: Evidence
docs/paper_to_code
docs/results
docs/studies
```

```{toctree}
:hidden:
:caption: Reference
docs/api
CHANGELOG
CONTRIBUTING
docs/citing
```
"""


MEASUREMENTS = """
```{toctree}
:hidden:
:glob:
/benchmarks/**
```
"""


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give the home page the list of all pages, and the results that of the benchmarks."""
    source[0] += {root_doc: CONTENTS, "docs/results": MEASUREMENTS}.get(docname, "")


def show_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula of a line as MathML, which browsers show without a script."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def show_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own as MathML."""
    translator.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("source-read", add_contents)
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
