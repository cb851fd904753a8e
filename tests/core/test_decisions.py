"""Pages of docs/decisions: few, in the index, cited from the code that they explain, and cited rightly."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "decisions"
#: A new question belongs on the page of its subject before it gets a page of its own.
MOST = 25
#: What a page explains.
CODE = ("core", "backends", "plugins", "benchmarks", "tests/support")
#: Where a page may be cited from.
READ = (*CODE, "docs", "examples", "tests", "tools")
SUFFIXES = {".md", ".py", ".toml", ".txt", ".yml"}

#: From outside the folder; from a page, which names its neighbours alone, a link without a folder.
CITATION = re.compile(r"\bdecisions/([\w.-]*\w)")
LINK = re.compile(r"\]\(([\w.-]+\.md)[#)]")
#: How pages were cited by number.
NUMBER = re.compile(r"\bdecision \(?\d{4}|\[\d{4}\]\(", re.IGNORECASE)


def pages() -> set[str]:
    return {path.name for path in FOLDER.iterdir()} - {"index.md", "template.md"}


def texts(*places: str) -> dict[Path, str]:
    found = [path for place in places for path in (ROOT / place).rglob("*") if path.suffix in SUFFIXES]
    return {path: path.read_text() for path in found if path != Path(__file__).resolve()}


def test_there_are_few_pages_with_plain_names() -> None:
    assert len(pages()) <= MOST
    assert [name for name in pages() if not re.fullmatch(r"[a-z]+(-[a-z]+)*\.md", name)] == []


def test_every_page_is_in_the_index() -> None:
    assert set(LINK.findall((FOLDER / "index.md").read_text())) == pages()


def test_every_page_is_cited_from_the_code_that_it_explains() -> None:
    cited = {name for text in texts(*CODE).values() for name in CITATION.findall(text)}
    assert pages() - cited == set()


def test_every_citation_points_to_a_page() -> None:
    everywhere = texts(*READ) | {path: path.read_text() for path in ROOT.iterdir() if path.suffix in SUFFIXES}
    everywhere[ROOT / "Makefile"] = (ROOT / "Makefile").read_text()
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in everywhere.items()
        for name in CITATION.findall(text) + (LINK.findall(text) if path.parent == FOLDER else [])
        if not (FOLDER / name).is_file()
    ]
    numbered = [str(path.relative_to(ROOT)) for path, text in everywhere.items() if NUMBER.search(text)]
    assert wrong == []
    assert numbered == []
