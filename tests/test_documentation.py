"""The pages of the site: none is out of reach, no link is broken, no public name is left out."""

import re
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/*.md", "recipes/README.md", "recipes/*/README.md")
    for page in REPOSITORY.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text)
    local = [link for link in links if not re.match(r"https?:|mailto:", link)]
    assert [link for link in local if not (REPOSITORY / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.startswith("docs/") and p != "docs/index.md"]
)
def test_index_leads_to_every_page(page):
    index = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    assert re.search(rf"^{Path(page).stem}$", index, re.MULTILINE), f"not in a toctree: {page}"


@pytest.mark.parametrize("module", ["hf_adamp", "hf_adamp.optim", "hf_adamp.diagnostics"])
def test_reference_has_every_public_name(module):
    reference = (REPOSITORY / "docs/reference.md").read_text(encoding="utf-8")
    documented = {name.rsplit(".")[-1] for name in re.findall(r"auto\w+:: (\S+)", reference)}
    public = import_module(module).__all__
    assert {name for name in public if not name.startswith("__")} <= documented
