"""Renders executed notebooks into one self-contained HTML page.

The page makes no request and runs one script, which its content security policy names by hash.
Nothing that a machine or an experiment says can become markup: the identity goes through Jinja's
autoescape, Markdown cells have raw HTML escaped, and the HTML and SVG that our own package emits
still pass an allow-list, because "our own package escapes its data" is a claim and not a barrier.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from html import unescape
from pathlib import Path
from typing import Any

import jinja2
import mistune
import nbformat
import tinycss2
from bleach.css_sanitizer import ALLOWED_CSS_PROPERTIES, ALLOWED_SVG_PROPERTIES, CSSSanitizer
from bleach.sanitizer import Cleaner
from markupsafe import Markup, escape
from nbconvert.filters import strip_ansi
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

from rseqlab.errors import LabError

TEMPLATES = Path(__file__).parent / "templates"

# The richest first: what a reader can zoom and search beats what he can only look at.
PREFERENCE = ("image/svg+xml", "text/html", "text/markdown", "image/png", "text/plain")

# Each status has a mark of its own shape, so that none of them depends on seeing colour.
STATUS_MARKS = {
    "pass": "✓",
    "fail": "✗",
    "crash": "‼",
    "timeout": "…",
    "skip": "–",  # noqa: RUF001
    "not measured": "○",
}

ORIGINS = {
    "local run": ("local", "Measured on the machine described here."),
    "local and shipped runs": (
        "mixed",
        "Rows of the machine described here; where it has none, rows that came with the project. The list of runs says which are which.",
    ),
    "shipped reference run": (
        "shipped",
        "Data that came with the project. It was measured on the machine described here, not on yours.",
    ),
}


@dataclass(frozen=True)
class Identity:
    """What stands at the top of the report: which run this is and what became of it."""

    title: str
    run_id: str
    digest: str
    origin: str
    profile: str
    started_utc: str
    ended_utc: str | None
    machine: Mapping[str, str]
    experiments: Sequence[Mapping[str, str]] | None
    """None where the page is not about one run's experiments."""
    notes: Sequence[str] = ()
    runs: Sequence[Mapping[str, str]] = ()
    """The runs that rows are shown of, where there are several: column to cell."""
    footnote: str = ""
    """What could not be measured, in a sentence; ``footnotes`` has the reasons."""
    footnotes: Sequence[str] = ()


class ReportWriteError(LabError, OSError):
    """The report could not be put in place; whatever stood there before is untouched."""

    def __init__(self, path: Path, cause: OSError) -> None:
        reason = cause.strerror or str(cause)
        super().__init__(
            cause.errno,
            f"could not write the report to {path}: {reason}. "
            "A report that stood there before is unchanged. "
            "Choose a directory you can write to, or free space, and render again",
        )
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1])


def render(notebooks: Sequence[tuple[str, nbformat.NotebookNode]], identity: Identity) -> str:
    """Return the report as HTML text. The same input gives the same bytes."""
    page = _Page({name: f"nb-{_slug(name)}" for name, _ in notebooks})
    sections = [page.section(name, notebook) for name, notebook in notebooks]
    template = _environment().get_template("report.html.j2")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    kind, explanation = ORIGINS.get(identity.origin, ("other", ""))
    return template.render(
        identity=identity,
        origin_kind=kind,
        origin_explanation=explanation,
        status_counts=Counter(experiment["status"] for experiment in identity.experiments or ()),
        status_marks=STATUS_MARKS,
        sections=sections,
        # A run describes itself at the top, unless the first notebook is the answer and stands there.
        answer_first=len(sections) > 1 and notebooks[0][0].startswith("00"),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write(html: str, path: Path) -> Path:
    """Put the report at `path` whole or not at all, and return `path`."""
    # The temporary file is a sibling because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(html)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ReportWriteError(path, error) from error
    return path


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "section"


# --- notebooks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heading:
    level: int  # as in the notebook: 1 is its title
    id: str
    text: str


@dataclass(frozen=True)
class _Output:
    kind: str  # html, svg, png, text, stdout, stderr, error: the template has a form for each
    body: Markup | str
    label: str = ""


@dataclass(frozen=True)
class _Cell:
    kind: str  # markdown or code
    body: Markup
    count: int | None = None
    outputs: Sequence[_Output] = ()


@dataclass
class _Section:
    id: str
    name: str
    headings: list[_Heading] = field(default_factory=list)
    cells: list[_Cell] = field(default_factory=list)

    @property
    def has_title(self) -> bool:
        return any(heading.level == 1 for heading in self.headings)


class _Page:
    """What must be unique or numbered across the whole page while it is being rendered."""

    def __init__(self, section_ids: Mapping[str, str]) -> None:
        self.section_ids = section_ids
        self._uses: Counter[str] = Counter()

    def number(self, what: str) -> int:
        self._uses[what] += 1
        return self._uses[what]

    def unique(self, wanted: str) -> str:
        """Return `wanted`, numbered from its second use on."""
        use = self.number(wanted)
        # The numbered form may itself be a heading somewhere, so it is claimed in the same way.
        return wanted if use == 1 else self.unique(f"{wanted}-{use}")

    @staticmethod
    def is_claim(id_: str) -> bool:
        """Whether an id names a claim: these mean the same everywhere on the page."""
        return bool(_CLAIM_ID.fullmatch(id_))

    def place(self, id_: str, prefix: str) -> str:
        """The id on the page: the first place of a claim keeps its own, everything else gets its output's prefix."""
        return id_ if self.is_claim(id_) and self.number(id_) == 1 else prefix + id_

    def inside(self, path: str) -> str | None:
        """The link to a notebook's section; None where the page does not hold that notebook."""
        found = self.section_ids.get(path.removeprefix("./").removesuffix(".ipynb"))
        return found and f"#{found}"

    def section(self, name: str, notebook: nbformat.NotebookNode) -> _Section:
        section = _Section(self.unique(self.section_ids[name]), name)
        markdown = _markdown(self, section)
        lexer = notebook.metadata.get("language_info", {}).get("pygments_lexer", "python")
        for cell in notebook.cells:
            if not cell.source.strip() and not cell.get("outputs"):
                continue
            if cell.cell_type == "markdown":
                section.cells.append(_Cell("markdown", Markup(markdown(cell.source))))
            elif cell.cell_type == "code":
                outputs = [self._output(output, markdown) for output in cell.outputs]
                section.cells.append(
                    _Cell(
                        "code",
                        _highlight(cell.source, lexer),
                        cell.execution_count,
                        [output for output in outputs if output],
                    )
                )
        return section

    def _output(self, output: nbformat.NotebookNode, markdown: mistune.Markdown) -> _Output | None:
        if output.output_type == "stream":
            return _Output(output.name, strip_ansi(output.text), self.scroll_label("Output"))
        if output.output_type == "error":
            trace = strip_ansi("\n".join(output.traceback))
            return _Output("error", trace, f"{output.ename}: {output.evalue}")
        kind = next((kind for kind in PREFERENCE if kind in output.data), None)
        if kind is None:
            return None
        data = output.data[kind]
        match kind:
            case "image/svg+xml":
                return _Output("svg", self._clean(data))
            case "text/html":
                return _Output("html", self._clean(data))
            case "text/markdown":
                return _Output("html", Markup(markdown(data)))
            case "image/png":
                # Decoding and encoding again leaves nothing in the attribute but base64.
                pixels = base64.b64encode(base64.b64decode(data)).decode()
                return _Output("png", pixels, self.scroll_label("Figure"))
            case _:
                return _Output("text", data, self.scroll_label("Output"))

    def scroll_label(self, what: str) -> str:
        """Name a container that scrolls sideways; numbered, because such names should differ."""
        return f"{what} {self.number(what)}"

    def _clean(self, html: str) -> Markup:
        finish = partial(_Finish, page=self, prefix=f"o{self.number('output')}-")
        return Markup(_cleaner(finish).clean(html))


def _highlight(source: str, language: str) -> Markup:
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = TextLexer()
    return Markup(highlight(source, lexer, HtmlFormatter(nowrap=True, classprefix="hl-")))


class _Renderer(mistune.HTMLRenderer):
    """Markdown as the page needs it: one heading level lower, linkable, nothing fetched."""

    def __init__(self, page: _Page, section: _Section) -> None:
        super().__init__(escape=True)
        self._page = page
        self._section = section

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        plain = Markup(text).striptags()
        heading = _Heading(level, self._page.unique(f"{self._section.id}--{_slug(plain)}"), plain)
        self._section.headings.append(heading)
        tag = f"h{min(level + 1, 6)}"
        return f'<{tag} id="{heading.id}">{text}</{tag}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self._inside_page(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        # The page fetches nothing, so a picture that is not in the text can only be linked.
        if url.startswith("data:"):
            return super().image(text, url, title)
        return self.link(text or url, url, title)

    def block_code(self, code: str, info: str | None = None) -> str:
        language = next(iter((info or "").split()), "text")
        label = escape(self._page.scroll_label("Listing"))
        opening = f'<pre class="listing" tabindex="0" role="region" aria-label="{label}">'
        return f"{opening}<code>{_highlight(code, language)}</code></pre>\n"

    def table(self, text: str) -> str:
        label = escape(self._page.scroll_label("Table"))
        opening = f'<div class="scroll scroll-table" tabindex="0" role="region" aria-label="{label}">'
        return f"{opening}<table>\n{text}</table></div>\n"

    def _inside_page(self, url: str) -> str:
        """Turn a link between notebooks, or inside one, into a link inside this page."""
        path, _, fragment = url.partition("#")
        name = path.removeprefix("./").removesuffix(".ipynb")
        if path and not (path.endswith(".ipynb") and name in self._page.section_ids):
            return url
        target = self._page.section_ids[name] if path else self._section.id
        return f"#{target}--{_slug(fragment)}" if fragment else f"#{target}"


def _markdown(page: _Page, section: _Section) -> mistune.Markdown:
    return mistune.create_markdown(
        renderer=_Renderer(page, section), plugins=["table", "strikethrough", "url"]
    )


# --- the allow-list for HTML and SVG outputs ---------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HTML_ELEMENTS = _words("""
    a abbr b blockquote br caption cite code col colgroup dd del details div dl dt em figcaption figure
    h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup
    table tbody td tfoot th thead time tr u ul var
""")
_SVG_ELEMENTS = _words("""
    circle clipPath defs ellipse g image line linearGradient marker mask path pattern polygon polyline
    radialGradient rect stop svg symbol text textPath tspan use
""")
# These go with all they hold. Most are elements whose content the HTML parser reads by other rules
# (raw text, or HTML inside SVG): without them a cleaned tree cannot be read back as a different one.
_DROPPED = _words("""
    desc embed foreignObject iframe math metadata noembed noframes noscript object script style
    template textarea title xmp
""")
_HTML_ATTRIBUTES = _words("""
    alt class colspan datetime dir headers height id lang open role rowspan scope start style title width
""")
_SVG_ATTRIBUTES = _words("""
    clipPathUnits cx cy d dx dy fx fy gradientTransform gradientUnits lengthAdjust markerHeight markerUnits
    markerWidth maskContentUnits maskUnits offset orient patternContentUnits patternTransform patternUnits
    points preserveAspectRatio r refX refY rotate rx ry spreadMethod startOffset textLength transform
    viewBox x x1 x2 y y1 y2
    alignment-baseline baseline-shift clip-path clip-rule color display dominant-baseline fill fill-opacity
    fill-rule font-family font-size font-style font-weight letter-spacing marker-end marker-mid
    marker-start mask opacity paint-order shape-rendering stop-color stop-opacity stroke stroke-dasharray
    stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width
    text-anchor text-rendering vector-effect visibility word-spacing
""")
_ATTRIBUTES = _HTML_ATTRIBUTES | _SVG_ATTRIBUTES
_CSS_PROPERTIES = (
    ALLOWED_CSS_PROPERTIES
    | ALLOWED_SVG_PROPERTIES
    | _words("""
        border border-bottom border-left border-right border-top clip-path dominant-baseline fill-opacity
        max-width min-width opacity padding paint-order shape-rendering stop-color stop-opacity
        stroke-dasharray stroke-dashoffset stroke-miterlimit text-anchor text-rendering vector-effect
    """)
)
_CSS_FUNCTIONS = _words("calc hsl hsla matrix max min rgb rgba rotate scale translate var")

_INLINE_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
_ADDRESS = re.compile(r"(?:https?:|mailto:|#)\S*|[^:\s]*")  # what has no colon has no scheme
_LOCAL = re.compile(r"#\S+")
_CLAIM_ID = re.compile(r"claim-\w+")


def _attribute_allowed(element: str, name: str, value: str) -> bool:
    if name in ("href", "src"):
        value = unescape(value)  # bleach hands over values with their character references
        pattern = {"a": _ADDRESS, "img": _INLINE_IMAGE, "image": _INLINE_IMAGE}.get(element, _LOCAL)
        return bool(pattern.fullmatch(value))
    return name in _ATTRIBUTES or name.startswith("aria-")


class _LocalCSS(CSSSanitizer):
    """Style attributes reduced to listed properties whose values refer to nothing outside the page."""

    def sanitize_css(self, style: str) -> str:
        declarations = tinycss2.parse_declaration_list(
            unescape(style), skip_comments=True, skip_whitespace=True
        )
        return "; ".join(
            f"{declaration.lower_name}: {tinycss2.serialize(declaration.value).strip()}"
            for declaration in declarations
            if declaration.type == "declaration"
            and declaration.lower_name in _CSS_PROPERTIES
            and all(map(self._harmless, declaration.value))
        )

    @staticmethod
    def _harmless(token: Any) -> bool:
        match token.type:
            case "url":
                return token.value.startswith("#")
            case "function":
                return token.lower_name in _CSS_FUNCTIONS
            case _:
                return True


def _cleaner(finish: Any) -> Cleaner:
    return Cleaner(
        tags=_HTML_ELEMENTS | _SVG_ELEMENTS | _DROPPED,
        attributes=_attribute_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        filters=[finish],
        css_sanitizer=_LocalCSS(),
    )


_Token = dict[str, Any]
_REFERENCE = re.compile(r"url\(\s*([\"']?)#([^\"')]+)\1\s*\)")


class _Finish:
    """The last filter of the cleaner: takes the cleaned tokens and makes them fit the page.

    It drops the elements of _DROPPED with their content, gives ids (and what refers to them) the
    prefix of their output, lowers headings by one level, and puts wide things - tables, drawings and
    preformatted text - in containers that scroll and can be reached by keyboard.
    """

    _WIDE = {"table": "Table", "svg": "Figure", "pre": "Output"}  # noqa: RUF012

    def __init__(self, source: Iterable[_Token], page: _Page, prefix: str) -> None:
        self._page = page
        self._prefix = prefix
        self._tokens = list(self._without_dropped(source))
        self._ids = {
            value for token in self._tokens for (_, name), value in _attributes(token).items() if name == "id"
        }

    def __iter__(self) -> Iterator[_Token]:
        inside: str | None = None  # the wide element that is open, and how deep it nests in itself
        depth = 0
        for position, token in enumerate(self._tokens):
            kind, name = token["type"], token.get("name")
            if name in ("h1", "h2", "h3", "h4", "h5"):
                token["name"] = f"h{int(name[1]) + 1}"
            if _attributes(token):
                token["data"] = {key: self._rewritten(key[1], value) for key, value in token["data"].items()}
            if name == "img" and kind in ("StartTag", "EmptyTag"):
                token["data"] = {(None, "alt"): "image without a description", **_attributes(token)}
            if kind == "StartTag" and inside is None and name in self._WIDE:
                inside = name
                yield self._container(name, position)
            if name == inside:
                depth += {"StartTag": 1, "EndTag": -1}.get(kind, 0)
            yield token
            if inside and depth == 0:
                inside = None
                yield {"type": "EndTag", "name": "div", "namespace": None, "data": {}}

    @staticmethod
    def _without_dropped(source: Iterable[_Token]) -> Iterator[_Token]:
        depth = 0
        for token in source:
            if token["type"] == "StartTag" and (depth or token["name"] in _DROPPED):
                depth += 1
            elif token["type"] == "EndTag" and depth:
                depth -= 1
            elif not depth and token.get("name") not in _DROPPED:
                yield token

    def _container(self, name: str, position: int) -> _Token:
        what = self._page.scroll_label(self._WIDE[name])
        words = _attributes(self._tokens[position]).get((None, "aria-label")) or self._caption(name, position)
        return {
            "type": "StartTag",
            "name": "div",
            "namespace": None,
            "data": {
                (None, "class"): f"scroll scroll-{name}",
                (None, "tabindex"): "0",
                (None, "role"): "region",
                (None, "aria-label"): f"{what}: {words}" if words else what,
            },
        }

    def _caption(self, name: str, position: int) -> str:
        """The text of a table's caption, or nothing."""
        words: list[str] | None = None
        for token in self._tokens[position:]:
            kind = token["type"]
            if kind == "EndTag" and token["name"] in ("caption", name):
                break
            if kind == "StartTag" and token["name"] == "caption":
                words = []
            elif words is not None and kind in ("Characters", "SpaceCharacters"):
                words.append(token["data"])
            elif words is not None and kind == "Entity":
                words.append(f"&{token['name']};")
        return " ".join("".join(words or ()).split())

    def _rewritten(self, name: str, value: str) -> str:
        if name == "id":
            return self._page.place(value, self._prefix)
        if name == "href" and self._page.is_claim(value[1:]):
            return value
        if name == "href" and value.endswith(".ipynb"):
            return self._page.inside(value) or value
        if name == "href" and value[1:] in self._ids and value.startswith("#"):
            return f"#{self._prefix}{value[1:]}"
        if name in ("headers", "aria-labelledby", "aria-describedby", "aria-controls"):
            return " ".join(self._prefix + word for word in value.split())
        return _REFERENCE.sub(rf"url(#{self._prefix}\2)", value)


def _attributes(token: _Token) -> Mapping[tuple[str | None, str], str]:
    return token["data"] if token["type"] in ("StartTag", "EmptyTag") else {}
