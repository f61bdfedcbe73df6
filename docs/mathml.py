"""Turns formulas into MathML when the site is built, so that pages need no script and no other server."""

import html
import re

from latex2mathml.converter import convert


_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """mkdocs calls this with the HTML of every page."""
    return _FORMULA.sub(_formula, content)


def _formula(found: re.Match[str]) -> str:
    tag, text = found.groups()
    latex = html.unescape(text).strip().removeprefix(r"\(").removeprefix(r"\[")
    latex = latex.removesuffix(r"\)").removesuffix(r"\]")
    return f'<{tag} class="formula">{convert(latex, display="block" if tag == "div" else "inline")}</{tag}>'
