"""How Sphinx makes a site of these pages: `make docs`."""

import sys
from pathlib import Path

from fl import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "fl-hpc"
author = "The fl-hpc authors"
release = __version__
extensions = ["myst_parser", "reference", "sphinx_click"]
html_theme = "furo"
html_title = "fl-hpc"
html_copy_source = False
# A page as it is read on GitHub, too: headings can be linked to, and code has no language.
myst_heading_anchors = 4
highlight_language = "none"
nitpicky = True
