"""Sphinx settings: Markdown pages, built by `make docs` into build/docs."""

project = "Marram"
author = "The Marram authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "Marram"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns: list[str] = []
html_theme_options = {"source_repository": "", "footer_icons": []}
