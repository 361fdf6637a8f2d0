"""Configuration of the documentation site: ``make site``, or ``sphinx-build -W --keep-going docs docs/_build/html``.

The environment variable VISIONATTN_NOTEBOOKS=off builds the site without executing the notebooks.
"""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its check for a new version needs the network

# For notebooks: the command, no progress bars, and no request for widgets that show them.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["TTY_COMPATIBLE"] = "0"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

from visionattn import __version__  # noqa: E402

project = "visionattn"
author = "The visionattn authors"
copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "sphinx_copybutton", "extension"]
exclude_patterns = ["_build", "licenses.md", "_generated/command_list.md"]  # the two are parts of other pages
default_role = "py:obj"  # `name` in docstrings
highlight_language = "text"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
nb_execution_mode = os.environ.get("VISIONATTN_NOTEBOOKS", "cache")
nb_execution_timeout = 600  # seconds for a cell
nb_execution_in_temp = True
nb_execution_cache_path = str(DOCS / "_build/.jupyter_cache")
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_number_source_lines = False

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as a list of fields, without entries of their own

html_theme = "furo"
html_title = f"visionattn {__version__}"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
