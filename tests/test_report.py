"""The report: one file that shows what the notebooks hold, and runs nothing that they hold."""

import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from accessibility import barriers
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rseqlab.study import report
from rseqlab.study.report import Identity, ReportWriteError, render, write

HOSTILE = [
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 1'>",
    '"><svg onload="window.owned = 1">',
    "<a href='java&#115;cript:window.owned=1'>x</a>",
    "<iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    # Parsed as SVG first and as HTML when it is read back: the classic way past a sanitiser.
    '<svg></p><style><a id="</style><img src=1 onerror=window.owned=1>">',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=owned=1&gt;'>",
    "<p style=\"background: url('https://example.org/x'); font-weight: bold\">x</p>",
    "<p style=\"fill: url(https://example.org/x); clip-path: url('https://example.org/x')\">x</p>",
    "{{ 7 * 7 }}</title></style><base href='https://example.org/'>",
]
ALL_HOSTILE = " ".join(HOSTILE)
ACTIVE_ELEMENTS = {"script", "iframe", "object", "embed", "base", "form", "math", "foreignobject"}


def identity(text: str = "") -> Identity:
    """An identity every field of which carries `text`."""
    return Identity(
        title=f"A report {text}",
        run_id=f"run-1 {text}",
        digest=f"sha256:00 {text}",
        origin=f"local run{text}",
        profile=f"quick {text}",
        started_utc=f"2025-01-01 00:00 {text}",
        ended_utc=None,
        machine={"kernel": f"6.1 {text}", f"libc {text}": "glibc 2.36 " + "x" * 300},
        experiments=[
            {"name": "counter", "status": "pass", "reason": "", "rows": "12"},
            {"name": f"abort_{text}", "status": f"new {text}", "reason": f"why {text}", "rows": f"1{text}"},
        ],
        notes=[f"the clock was unstable {text}"],
    )


@pytest.fixture(scope="module")
def matplotlib_svg() -> str:
    """A real figure, with the clip paths, markers and glyphs by reference that matplotlib writes."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "fixed"}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3))
        axes = figure.subplots()
        axes.plot([1, 2, 4, 8], [3, 1, 2, 9], marker="o")
        axes.bar([3], [5], hatch="//")
        axes.set_xlabel("threads")
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return text.getvalue()


def displayed(**data: str):
    return new_output("display_data", {kind.replace("_", "/"): value for kind, value in data.items()})


def notebook(*cells):
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return new_notebook(cells=list(cells), metadata={"language_info": language})


@pytest.fixture(scope="module")
def notebooks(matplotlib_svg: str):
    _, _, rest = matplotlib_svg.partition("<svg")
    svg = f'<svg role="img" aria-label="Cost"{rest}'
    figure = f'<figure class="rl-figure">{svg}<figcaption>What it costs.</figcaption></figure>'
    wide_row = "".join(f"<td>{number}.000000</td>" for number in range(40))
    table = f'<table class="rl-table"><caption>All costs</caption><tbody><tr>{wide_row}</tr></tbody></table>'
    claims = "".join(
        f'<p class="rl-claim"><span class="rl-verdict rl-{kind}">{kind}</span> It is so. '
        '<span class="rl-source">row 1</span></p>'
        for kind in ("holds", "fails", "inconclusive", "not-measured")
    )
    first = notebook(
        new_markdown_cell(
            "# Who registers\n\n" + ALL_HOSTILE + "\n\n## The cost\n\n[next](20_counter.ipynb#The-cost)\n\n"
            "[bad](javascript:window.owned=1) ![remote](https://example.org/a.png)\n\n"
            "| a | b |\n|--|--:|\n| 1 | 2 |\n\n```c\nint x = 0; /* " + "long " * 60 + "*/\n```"
        ),
        new_code_cell(
            "print('" + "x" * 300 + "')  # <b>not markup</b>",
            execution_count=1,
            outputs=[
                new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m " + ALL_HOSTILE),
                new_output("stream", name="stderr", text="a warning"),
                displayed(text_html=figure, text_plain="<Figure>"),
                displayed(text_html=figure),
                displayed(text_html=table + claims + "<div class='rl-run'>Run run-1</div>"),
                *[displayed(text_html=text) for text in HOSTILE],
                displayed(**{"image/svg+xml": matplotlib_svg}, text_html="<p>poorer than SVG</p>"),
                *[displayed(**{"image/svg+xml": f"<svg>{text}</svg>"}) for text in HOSTILE],
                displayed(text_markdown="*strong* " + ALL_HOSTILE, text_plain="poorer than Markdown"),
            ],
        ),
    )
    second = notebook(
        new_markdown_cell("# Counters\n\n## The cost\n\n## The cost\n\n### Detail\n\n## `code` & <i>"),
        new_code_cell("1", execution_count=None, outputs=[displayed(text_plain="1 < 2")]),
    )
    untitled = notebook(new_markdown_cell("Without any title."))
    return [("10_registration", first), ("20_counter", second), ("30_rest", untitled)]


@pytest.fixture(scope="module")
def html(notebooks) -> str:
    return render(notebooks, identity(ALL_HOSTILE))


class Elements(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.found if name in attributes]


# --- without a browser -----------------------------------------------------------------------------


def test_nothing_hostile_becomes_an_element(html):
    found = Elements(html).found
    active = [(tag, attributes) for tag, attributes in found if tag in ACTIVE_ELEMENTS]
    assert active == [("script", {})], "only the page's own script may be there"
    names = {name for _, attributes in found for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    addresses = [
        attributes[name] for _, attributes in found for name in ("href", "src") if name in attributes
    ]
    assert not [address for address in addresses if "script" in address.lower()]
    assert not [style for style in Elements(html).values("style") if "example.org" in style]


def test_hostile_text_is_still_shown(html):
    assert "&lt;script&gt;window.owned = 1&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html


def test_same_input_same_bytes(notebooks, html):
    assert render(notebooks, identity(ALL_HOSTILE)) == html


def test_input_is_left_alone(notebooks):
    before = [notebook.copy() for _, notebook in notebooks]
    render(notebooks, identity())
    assert [notebook for _, notebook in notebooks] == before


def test_size(html):
    assert len(html.encode()) < 5_000_000


def test_ids_are_unique(html):
    ids = Elements(html).values("id")
    assert len(ids) == len(set(ids))


def test_references_inside_the_page_resolve(html):
    elements = Elements(html)
    ids = set(elements.values("id"))
    local = {value[1:] for value in elements.values("href") if value.startswith("#")} - {"harmful-link"}
    labels = {word for value in elements.values("aria-labelledby") for word in value.split()}
    assert local | labels <= ids


def test_a_link_to_another_notebook_stays_in_the_page(html):
    assert '<a href="#nb-20-counter--the-cost">next</a>' in html


def test_contents_list_every_title_and_section(html):
    contents = html[html.index("<nav") : html.index("</nav>")]
    assert contents.count(">The cost<") == 3
    for text in ("Who registers", "Counters", "30_rest", "code &amp; &lt;i&gt;"):
        assert f">{text}</a>" in contents
    assert "Detail" not in contents


def test_headings_are_one_level_lower(html):
    levels = [tag for tag, _ in Elements(html).found if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count("h1") == 1
    assert "<h3" in html[html.index('id="nb-20-counter"') :]


def test_the_richest_form_is_shown(html):
    assert "poorer than" not in html


def test_matplotlib_drawing_keeps_its_form(html):
    assert 'viewBox="0 0 504 216"' in html
    assert "<clipPath" in html
    assert "RDF" not in html and "Matplotlib v" not in html


def test_wide_things_are_named_and_reachable(html):
    regions = [attributes for _, attributes in Elements(html).found if attributes.get("role") == "region"]
    assert all(attributes["tabindex"] == "0" for attributes in regions)
    names = [attributes["aria-label"] for attributes in regions if "aria-label" in attributes]
    assert "Figure 1: Cost" in names
    assert any(name.endswith(": All costs") for name in names)


def test_a_failed_cell_is_visible():
    failed = new_output("error", ename="ValueError", evalue="<b>", traceback=["\x1b[31mboom\x1b[0m"])
    page = render([("x", notebook(new_code_cell("f()", outputs=[failed])))], identity())
    assert "This cell failed." in page and "ValueError: &lt;b&gt;" in page and ">boom<" in page


@pytest.mark.parametrize("origin", report.ORIGINS)
def test_the_origin_is_told(origin):
    page = render([], Identity("t", "r", "d", origin, "p", "s", "e", {}, []))
    assert f"<strong>{origin}</strong> {report.ORIGINS[origin][1]}" in page


@pytest.mark.parametrize("status", report.STATUS_MARKS)
def test_a_status_is_a_word_and_a_mark(status):
    experiment = {"name": "n", "status": status, "reason": "because", "rows": "0"}
    page = render([], Identity("t", "r", "d", "local run", "p", "s", "e", {}, [experiment]))
    assert f'aria-hidden="true">{report.STATUS_MARKS[status]}</span> {status}</span>' in page
    assert "because" in page


def test_many_notes_fold_and_none_is_lost():
    texts = [f"note {number}." for number in range(40)]
    page = render([], Identity("t", "r", "d", "local run", "p", "s", "e", {}, [], texts))
    assert "37 more notes" in page
    assert all(f"<li>{text}</li>" in page for text in texts)


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "report" / "index.html"
    assert write("first", target) == target
    assert write("second", target) == target
    assert target.read_text() == "second"
    assert os.listdir(target.parent) == ["index.html"]


def test_a_write_that_fails_midway_keeps_the_old_report(tmp_path, monkeypatch):
    target = write("old", tmp_path / "index.html")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full)
    with pytest.raises(ReportWriteError, match="No space left on device"):
        write("new", target)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["index.html"]


def test_write_error_says_what_where_why_and_what_next(tmp_path):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "index.html"
    with pytest.raises(OSError) as caught:
        write("text", target)
    message = str(caught.value)
    assert "could not write the report" in message
    assert str(target) in message
    assert "Choose a directory you can write to" in message


def test_write_error_on_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        with pytest.raises(ReportWriteError, match="Permission denied"):
            write("text", tmp_path / "index.html")
    finally:
        tmp_path.chmod(0o700)


# --- in a real browser -------------------------------------------------------------------------------

PHONE = {"width": 400, "height": 800}
DESKTOP = {"width": 1400, "height": 900}

# The contrast of every visible text with what is painted behind it, where it is below AA.
LOW_CONTRAST = """() => {
  const channels = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((channels(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || element.closest("svg") || !element.checkVisibility()) continue;
    const color = getComputedStyle(element).color;
    const [dark, light] = [luminance(color), luminance(background(element))].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.className} ${color} ${ratio.toFixed(2)}`);
  }
  return [...new Set(low)];
}"""


class Opened:
    """A page, and everything it asked for or complained about."""

    def __init__(self, page, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url, wait_until="load")


@pytest.fixture
def opened(browser, html, tmp_path: Path):
    """Open the report the way a reader does, from the file system."""
    path = write(html, tmp_path / "index.html")
    contexts = []

    def open_page(viewport=DESKTOP, **options) -> Opened:
        contexts.append(browser.new_context(viewport=viewport, **options))
        return Opened(contexts[-1].new_page(), path.as_uri())

    yield open_page
    for context in contexts:
        context.close()


def test_page_asks_for_nothing_and_complains_of_nothing(opened):
    page = opened()
    page.page.get_by_role("button", name="Show all code").click()
    page.page.wait_for_timeout(200)
    assert page.requests == [page.url]
    # A violation of the content security policy is reported on the console, too.
    assert page.complaints == []


def test_hostile_text_does_not_run(opened):
    page = opened().page
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    # The browser's own reading of the page counts: a sanitiser and it may disagree about a tree.
    assert page.locator(", ".join(ACTIVE_ELEMENTS)).count() == 1
    names = page.locator("*").evaluate_all("all => all.flatMap((e) => e.getAttributeNames())")
    assert not {name for name in names if name.startswith("on")}


def test_policy_stops_what_the_allow_list_would_miss(opened):
    page = opened()
    page.page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", '<img src="data:," onerror="window.owned = 1">');
          const script = document.createElement("script");
          script.textContent = "window.owned = 1";
          document.body.append(script);
        }"""
    )
    page.page.wait_for_timeout(200)
    assert page.page.evaluate("window.owned") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_page_never_scrolls_sideways(opened, viewport):
    page = opened(viewport).page
    page.get_by_role("button", name="Show all code").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_wide_table_scrolls_in_its_own_region(opened):
    region = opened(PHONE).page.get_by_role("region", name="All costs")
    assert region.evaluate("e => e.scrollWidth > e.clientWidth")
    region.focus()
    assert region.evaluate("e => e === document.activeElement")


def test_code_unfolds_and_folds(opened):
    page = opened().page
    listing = page.locator("details.code pre").first
    assert not listing.is_visible()
    page.get_by_role("button", name="Show all code").click()
    assert listing.is_visible()
    page.get_by_role("button", name="Hide all code").click()
    assert not listing.is_visible()
    page.locator("details.code summary").first.focus()
    page.keyboard.press("Enter")
    assert listing.is_visible()


def test_code_can_be_read_without_script(opened):
    page = opened(java_script_enabled=False).page
    page.locator("details.code summary").first.click()
    assert page.locator("details.code pre").first.is_visible()


def test_contents_are_folded_on_a_phone_only(opened):
    link = "nav li a >> nth=0"
    assert opened(DESKTOP).page.locator(link).is_visible()
    phone = opened(PHONE).page
    assert not phone.locator(link).is_visible()
    phone.locator("nav summary").click()
    assert phone.locator(link).is_visible()


def paper(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_colours_follow_the_system_until_one_is_chosen_and_remembered(opened):
    page = opened().page
    page.emulate_media(color_scheme="light")
    light = paper(page)
    page.emulate_media(color_scheme="dark")
    dark = paper(page)
    assert light != dark
    choice = page.get_by_role("group", name="Colours")
    assert choice.get_by_role("radio", name="system").is_checked()
    choice.get_by_role("radio", name="light").check()
    assert paper(page) == light
    page.reload()
    assert paper(page) == light and choice.get_by_role("radio", name="light").is_checked()
    page.emulate_media(media="print", color_scheme="dark")
    assert paper(page) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen", color_scheme="light")
    choice.get_by_role("radio", name="dark").check()
    assert paper(page) == dark
    choice.get_by_role("radio", name="system").check()
    assert paper(page) == light
    page.reload()
    assert choice.get_by_role("radio", name="system").is_checked()


def test_page_works_where_storage_is_denied(opened):
    page = opened()
    page.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } })"
    )
    page.page.reload()
    before = paper(page.page)
    page.page.get_by_role("radio", name="dark").check()
    assert paper(page.page) != before
    page.page.get_by_role("radio", name="system").check()
    assert paper(page.page) == before
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened, scheme):
    page = opened(color_scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_axe_finds_no_barrier(opened, scheme, viewport):
    assert barriers(opened(viewport, color_scheme=scheme).page) == []


def test_axe_would_find_one(opened):
    page = opened().page
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<input type=text>')")
    assert any("label" in barrier for barrier in barriers(page))


def test_drawings_are_drawn(opened):
    page = opened().page
    # References by id survive the prefixes: a glyph or a marker that lost its definition has no extent.
    extents = page.locator("svg use").evaluate_all(
        "all => all.map((e) => e.getBBox()).map((box) => box.width + box.height)"
    )
    assert extents and all(extents)
    clipped = page.locator("svg [clip-path]").evaluate_all(
        "all => all.map((e) => document.querySelector(e.getAttribute('clip-path').slice(4, -1)))"
    )
    assert clipped and all(element is not None for element in clipped)


def test_print_hides_code_contents_and_controls(opened):
    page = opened(PHONE).page
    page.emulate_media(media="print")
    for hidden in ("details.code", ".tools", "nav", "#search", "#theme"):
        assert not page.locator(hidden).first.is_visible(), hidden


def test_search_finds_counts_and_unfolds(opened):
    page = opened().page
    field = page.get_by_role("searchbox")
    listing = page.locator("details.code pre").first
    word = re.search(r"[a-z]{3,}", listing.text_content())[0]
    field.fill(word.upper())
    found = page.locator("#search output")
    assert int(found.text_content().split()[0]) >= 1
    folded = "document.querySelectorAll('main details.code:not([open])').length"
    before = page.evaluate(folded)
    for _ in range(int(found.text_content().split()[0])):
        field.press("Enter")
    assert found.text_content().startswith(found.text_content().split(" of ")[1].split()[0])
    assert page.evaluate(folded) < before
    field.fill("no such words anywhere")
    assert found.text_content() == "0 found"


def test_tables_sort_by_number_and_back(opened):
    page = opened().page
    table = page.locator("header table").first
    button = table.get_by_role("button", name="rows")
    column = "rows => rows.map((row) => Number(row.cells[1].textContent || 0))"
    button.focus()
    page.keyboard.press("Enter")
    rising = table.locator("tbody tr").evaluate_all(column)
    assert rising == sorted(rising)
    button.click()
    assert table.locator("tbody tr").evaluate_all(column) == rising[::-1]
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_the_answer_comes_before_the_run_that_gave_it(notebooks):
    named = [("00_answer", notebooks[0][1]), *notebooks[1:]]
    html = render(named, identity())
    ids = re.findall(r'<section class="(?:notebook|identity)"[^>]*?(?:id|labelledby)="([^"]+)"', html)
    assert ids[:2] == ["nb-00-answer", "this-run"] and ids.count("this-run") == 1
