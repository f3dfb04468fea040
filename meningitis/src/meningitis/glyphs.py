"""How a LaTeX name is shown: a base and a subscript in Unicode. Knows nothing of models."""

from __future__ import annotations

import re
import unicodedata

# The variants have names of their own in Unicode; TeX's \phi is the closed form, its \varphi the open one.
_VARIANTS = {"varepsilon": "ε", "epsilon": "ϵ", "varphi": "φ", "phi": "ϕ", "vartheta": "ϑ", "varrho": "ϱ"}


def glyph(latex: str) -> tuple[str, str]:
    r"""A LaTeX name as Unicode: its base and its subscript. `\gamma_c` is ("γ", "c")."""
    base, _, sub = re.sub(r"\\_", "\0", latex.strip()).partition("_")
    return _plain(base), _plain(sub)


def greek(name: str) -> str:
    """The Greek letter of a LaTeX command such as `varphi`, without its backslash; empty where there is none."""
    if name in _VARIANTS:
        return _VARIANTS[name]
    size = "CAPITAL" if name[:1].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
    except KeyError:
        return ""


def _plain(latex: str) -> str:
    bare = re.sub(r"\\(?:mathrm|mathit|text|operatorname)\b", "", latex).replace("{", "").replace("}", "")
    return re.sub(r"\\([A-Za-z]+)", lambda found: greek(found[1]) or found[1], bare).replace("\0", "_").strip()
