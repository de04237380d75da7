"""The docs name what there is: every public name, argument, logged key and message."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import sb3_hybrid_grpo
from sb3_hybrid_grpo.auto_grouping import FOUND_BELOW, GROUPED_BELOW, SHORTEST, SINGLE_ABOVE
from sb3_hybrid_grpo.group_rollouts import GroupRollouts

PACKAGE = Path(sb3_hybrid_grpo.__file__).parent
DOCS = PACKAGE.parent / "docs"
PUBLIC = [
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in sorted(PACKAGE.rglob("__init__.py"))
    if "__all__" in path.read_text() and (path.parent.name != "distributed" or importlib.util.find_spec("ray"))
]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="runs without the docs")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def public_names() -> dict[str, object]:
    """Public objects by name; one that two modules export has one name."""
    found: dict[str, object] = {}
    for module in map(importlib.import_module, PUBLIC):
        found |= {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
    return found


def strings() -> list[str]:
    """All texts in the package's source; an f-string is several."""
    texts = []
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return texts


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_in_the_reference_once(name: str) -> None:
    directives = re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", page("api.rst"), re.MULTILINE)
    assert directives.count(name) == 1
    found = public_names()[name]
    assert isinstance(found, str) or inspect.getdoc(found)


@pytest.mark.parametrize("name", sorted(public_names().keys() - {"ALGORITHM", "BranchingReport", "SupportsBranching"}))
def test_every_parameter_of_a_public_function_is_described(name: str) -> None:
    found: Any = public_names()[name]
    described = re.findall(r":param (\w+):", inspect.getdoc(found) or "")
    if isinstance(found, type) and issubclass(found, GroupRollouts):
        described += re.findall(r":param (\w+):", f"{inspect.getdoc(GroupRollouts)}")
        given = inspect.signature(GroupRollouts).parameters
    else:
        given = inspect.signature(found).parameters
    assert set(given) <= set(described)


def test_every_argument_is_in_the_table_with_its_default() -> None:
    table = page("arguments.md")
    ours = [one for one in inspect.signature(GroupRollouts).parameters.values() if one.kind is one.KEYWORD_ONLY]
    assert len(ours) > 5
    for one in ours:
        default = repr(one.default).replace("'", '"')
        assert f"| `{one.name}` | `{default}` |" in table


def test_every_logged_key_is_explained() -> None:
    keys = {text for text in strings() if re.fullmatch(r"(train|time|rollout)/\w+", text)}
    assert "train/gradient_variance_ratio" in keys
    explained = re.findall(r"`([\w/]+)`", page("logging.md"))
    assert keys <= set(explained)


def test_messages_in_troubleshooting_are_those_of_the_package() -> None:
    section = page("troubleshooting.md").split("## Messages")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    quoted = [part for row in rows for part in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 20
    texts = strings()
    unknown = [part for part in quoted if not any(part in text for text in texts)]
    assert not unknown


def test_the_rule_of_auto_has_its_numbers() -> None:
    assert f"at least {SHORTEST} executed steps" in page("choosing.md") and f"{SHORTEST} if True" in str(GroupRollouts.__doc__)
    for text in (page("choosing.md"), (DOCS.parent / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"ρ below {GROUPED_BELOW}\b", text) and re.search(rf"together is below {FOUND_BELOW}\b", text)
        assert re.search(rf"above {SINGLE_ABOVE}\b", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md"))], ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not link.startswith(("http:", "https:")):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_readme_is_one_screen() -> None:
    assert len((DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_citation_has_the_version() -> None:
    assert f"\nversion: {sb3_hybrid_grpo.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version = {{{sb3_hybrid_grpo.__version__}}}" in page("citing.md")
