"""Links in the documentation resolve, and the commands that it shows exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest

from fastcifar.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


def test_every_page_is_linked_from_the_readme_or_a_page_that_it_links() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            todo += [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)", page.read_text())]
    assert set((ROOT / "docs").glob("*.md")) <= seen


def shown_commands() -> list[tuple[str, str]]:
    """Each line of a shell block that calls fastcifar or one of its scripts, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(str(page.relative_to(ROOT)), line.strip().removeprefix("$ ")) for line in lines]
    return [(page, line) for page, line in found if re.search(r"\bfastcifar\b|^python |^bash ", line)]


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_shown_commands_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words and words[0] in ("bash", "python") and not words[1].startswith("-"):
        assert (ROOT / words[1]).exists(), line
        return
    if "fastcifar" not in words:
        return  # a path, or set-up
    name, *arguments = words[words.index("fastcifar") + 1 :]
    command = cli.commands[name]
    options = {option: param for param in command.params for option in (*param.opts, *param.secondary_opts)}
    for word in arguments:
        if word.startswith("--"):
            assert word.partition("=")[0] in options or word == "--help", line
    for option, value in pairwise(arguments):
        kind = options[option].type if option in options else None
        if isinstance(kind, click.Choice):
            assert value in kind.choices, line
