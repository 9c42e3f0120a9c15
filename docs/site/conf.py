"""The documentation site: the repository's own pages, and a reference made from docstrings.

Sphinx reads the pages where they stand (`sphinx-build -c docs/site . build/site`), so a link that
works in a clone works on the site too, and one that is broken fails the build.
"""

import re
from pathlib import Path

from sphinx.util import logging

from hf_adamp import __version__

ROOT = Path(__file__).parents[2]
log = logging.getLogger(__name__)

project = "hf-adamp"
author = copyright = "The hf-adamp authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    *("*.md", "docs/*.md"),
    *("recipes/README.md", "recipes/*/README.md"),
    *("recipes/*/fixtures/*.md", "recipes/*/results/*.md"),
]
exclude_patterns = [".*", "runs", "build", "dist", "hf_adamp", "tests"]

# Every heading is a target of links, down to the fourth level, with GitHub's spelling.
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the changelog and some pages skip a level on purpose

default_role = "code"  # docstrings write `name`, as the pages do
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"hf-adamp {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = []


def link_folders(app, name, source):
    """Let a link to a folder lead to the page in it; a folder without a page is only named.

    A code host shows a folder's files; a site has no such page.
    """
    here = (ROOT / name).parent

    def target(match):
        text, link = match.groups()
        folder = here / link
        if not folder.is_dir():
            return match[0]
        return (
            f"[{text}]({link.rstrip('/')}/README.md)" if (folder / "README.md").exists() else text
        )

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)\)", target, source[0])


def require_docstring(app, what, name, subject, options, lines):
    """Fail a strict build for a public name that says nothing of itself."""
    if not any(line.strip() for line in lines) and what in ("class", "function", "method"):
        log.warning("%s has no docstring", name)


def require_docstring_of_member(app, what, name, subject, skip, options):
    """The same for a class's methods, which autodoc leaves out where they have none."""
    if callable(subject) and not name.startswith("_") and not getattr(subject, "__doc__", None):
        log.warning("%s has no docstring", getattr(subject, "__qualname__", name))


def enter_at_the_root(app, exception):
    """Send who opens the site's root to its first page, which stands in docs/ as in a clone."""
    if exception is None:
        (Path(app.outdir) / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>hf-adamp</title>'
            '<meta http-equiv="refresh" content="0; url=docs/index.html">'
            '<a href="docs/index.html">hf-adamp</a>\n',
            encoding="utf-8",
        )


def setup(app):
    """Connect the functions above."""
    app.connect("source-read", link_folders)
    app.connect("autodoc-process-docstring", require_docstring)
    app.connect("autodoc-skip-member", require_docstring_of_member)
    app.connect("build-finished", enter_at_the_root)
