"""The pages say what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("reports/*/README.md")]
PAGES += [*(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


def test_every_page_says_something():
    assert all(len(page.read_text()) > 200 for page in PAGES)


def test_every_example_is_named_in_the_page_of_examples():
    page = (ROOT / "examples" / "README.md").read_text()
    scripts = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh")]
    assert scripts
    assert [name for name in scripts if f"`{name}`" not in page] == []


def test_every_benchmark_is_named_in_the_page_of_benchmarks():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = [path.name for path in (ROOT / "benchmarks").glob("*.py")]
    assert scripts
    assert [name for name in scripts if f"`{name}`" not in page] == []
