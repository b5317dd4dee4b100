"""How Sphinx makes the site from the folder that `build.py` lays out."""

import sys
from pathlib import Path

# Before torch is mocked: SciPy looks for it among what is loaded, and takes the mock for the real one.
import scipy.optimize
import scipy.sparse
import scipy.stats  # noqa: F401
from sphinx.ext.autodoc.mock import _MockObject
from sphinx.util.inspect import TypeAliasForwardRef

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

# Annotations such as `Tensor | None` are evaluated on import; Sphinx's mocks do not know the bar.
_MockObject.__or__ = _MockObject.__ror__ = lambda self, other: object
# A name of `autodoc_type_aliases` beside a bar would be shown as a call of this class.
TypeAliasForwardRef.__repr__ = lambda self: self.name

project = "Rules to Ranks"
author = "The Rules to Ranks authors"
copyright = f"{author}; code Apache-2.0, text and figures CC-BY-4.0"
html_title = project

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "sphinx.ext.autodoc", "hooks", "linking"]
exclude_patterns = ["README.md"]  # parts of it are included in pages

# --- notebooks and pages in Markdown ----------------------------------------------------------------------------

nb_execution_mode = "off"
nb_merge_streams = True
nb_custom_formats = {".ipynb": ["hooks.read", {}, False]}
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_ipywidgets_js = {}  # no widget is stored, and its scripts would come from another host
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# --- the reference of the library -------------------------------------------------------------------------------

# What a stage needs to run and a page about it does not.
autodoc_mock_imports = [
    "chess",
    "gguf",
    "hqq",
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "optuna",
    "peft",
    "safetensors",
    "seaborn",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("ArrayLike", "Bits", "Floats", "NDArray", "Words")}
add_module_names = False
python_maximum_signature_line_length = 88
# Names that stand in several modules: a word of an annotation, such as `rows`, leads to none of them.
suppress_warnings = ["ref.python"]
default_role = "py:obj"  # `simulate` in a docstring leads there, and is code where there is nothing of that name

# --- the pages as HTML ------------------------------------------------------------------------------------------

html_theme = "furo"
html_static_path = [str(HERE / "static")]  # and what is made, see `hooks.setup`
html_css_files = ["site.css"]
html_favicon = str(HERE / "static" / "mark.svg")
html_logo = html_favicon
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a8e", "color-brand-content": "#005a8e"},
    "dark_css_variables": {"color-brand-primary": "#6cbcf0", "color-brand-content": "#6cbcf0"},
    "footer_icons": [],
}
