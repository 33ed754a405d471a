"""How Sphinx makes the documentation: ``sphinx-build -W -b html docs build/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import firstlight  # noqa: E402

project = "firstlight"
copyright = "The firstlight maintainers"
version = release = firstlight.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_pages"]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A single back-quoted word in a docstring is a parameter or a name nearby. It is shown as code; linking each of them
# would make every short name in the project ambiguous.
default_role = "literal"
# Attributes of the same name in several classes: a type in a signature is not one of them.
suppress_warnings = ["ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
nitpicky = False

html_theme = "furo"
html_title = f"firstlight {version}"
html_static_path = ["_static"]
html_copy_source = False
# Control-system networks have no way out: no fonts, scripts or badges from elsewhere, and no link to a hosting service.
html_theme_options = {"footer_icons": []}
