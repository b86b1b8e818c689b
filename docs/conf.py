"""How Sphinx makes the site of these pages: `make docs`.

Nothing of it needs a network when it is read: there is no CDN and no web font, and formulas are
MathML that is made here.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import inspect, logging

import nam_jax

project = "nam-jax"
author = "the nam-jax authors"
version = release = nam_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# For maintainers, not readers.
exclude_patterns = ["releasing.md"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# In docstrings a backtick is code, and a link where it names something of this library. Whatever
# else is missing stands in the documentation of others, which a build without a network cannot
# ask.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!nam_jax\.).*"), ("py:obj", r".*\(.*")]
autodoc_member_order = "bysource"
# Docstrings say shapes, dtypes and ranges; types would repeat it at length.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 80
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # commands of a shell in a notebook are no Python

html_theme = "furo"
html_title = "nam-jax"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False

# What LaTeX calls the characters that formulas in docstrings are written with.
_TEX = str.maketrans(
    {"−": "-", "×": r"\times ", "←": r"\leftarrow ", "²": "^2", "₁": "_1", "₂": "_2"}
)
_ABSOLUTE = re.compile(r"\|([^|]*)\|")
_SPACE = re.compile(r"(?<=[\w)\]|]) (?=[\w(\[|])")
_NAME = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}[0-9]*")


def mathml(tex: str, *, as_block: bool) -> str:
    """A formula of TeX, or of plain text: names of several letters are upright, spaces are kept."""
    if "\\" not in tex:
        tex = _SPACE.sub(r" \\, ", tex)
        tex = _NAME.sub(r"\\text{\g<0>}", tex.translate(_TEX))
    return tex2mathml(_ABSOLUTE.sub(r"\\left|\1\\right|", tex), as_block=as_block)


def _visit_math(writer: Any, node: nodes.Element) -> None:
    writer.body.append(mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _visit_math_block(writer: Any, node: nodes.Element) -> None:
    """Formulas that two spaces divide stand below one another where there is no room."""
    for line in filter(None, node.astext().splitlines()):
        parts = [mathml(part, as_block=True) for part in line.split("  ")]
        style = "display: flex; flex-wrap: wrap; justify-content: center; align-items: baseline"
        style += "; gap: 0.6em 2em; margin: 0.8em 0; overflow: auto hidden; padding: 0.2em 0"
        writer.body.append(f'<div style="{style}">{"".join(parts)}</div>')
    raise nodes.SkipNode


def _plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, returned: Any
) -> Any:
    """Without the fields that every linen module has; of NNX modules, what they are built with."""
    if signature == "(*args, **kwargs)":
        built = inspect.signature(obj.__init__, bound_method=True)
        signature = inspect.stringify_signature(built, show_annotation=False)
    if signature is None:
        return None
    signature = re.sub(r", parent=<[^>]*>, name=None", "", signature)
    return re.sub(r"<(?:class|function) '?(?:\w+\.)*(\w+)'?>", r"\1", signature), returned


def _link_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to what lies elsewhere in the repository lead to where the site has it."""
    text = re.sub(r"\]\((\.\./)+benchmarks/README\.md", "](/training/benchmarks.md", source[0])
    tour = r"\[([^]]*)\]\((?:\.\./)+examples/tour\.ipynb\)"
    source[0] = re.sub(tour, r"{doc}`\1 </start/tour>`", text)


def _name_language(app: Sphinx, pagename: str, template: str, context: Any, doctree: Any) -> None:
    if pagename.startswith("zh/"):
        context["language"] = "zh"


_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    r"""|url\(["']?(?:https?:)?//[^)]*\)|@import\s[^;]*//[^;]*"""
)


def _check_network(app: Sphinx, error: Exception | None) -> None:
    """Warns where a page or a style sheet would load something from elsewhere."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in (".html", ".css") and (found := _LOADED.search(path.read_text())):
            logging.getLogger(__name__).warning("%s would load %s from a network", path, found[0])


def setup(app: Sphinx) -> None:
    """Adds what the extensions lack."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.connect("autodoc-process-signature", _plain_signature)
    app.connect("source-read", _link_inside)
    app.connect("html-page-context", _name_language)
    app.connect("build-finished", _check_network)
