"""Sphinx: MyST Markdown, and one page per system generated from its card, findings and ledger."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "docs"))

from generate import write_pages  # noqa: E402

project = "Cambrian"
author = "The Cambrian authors"
extensions = ["myst_parser"]
html_theme = "furo"
exclude_patterns = ["_build", "findings"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

write_pages(ROOT)
