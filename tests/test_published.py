"""The whole report, from a shipped run: made once, not again, in a real browser, and from a hostile run."""

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
import runs
from accessibility import barriers
from conftest import require_or_skip

from rseqlab.lab import bundle
from rseqlab.study import publish
from rseqlab.study.claims import claims
from rseqlab.study.run import SHIPPED, open_run, reference_runs

HOSTILE = "</style><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path, anew = publish.publish(open_run(SHIPPED), folder, False, lambda *progress: None)
    assert anew
    return path


def visit(browser, path, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab = context.new_page()
    said, asked = [], []
    tab.on(
        "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
    )
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    return tab, said, asked


@pytest.mark.parametrize("width", [360, 400, 1400])
def test_opens_offline_silently_and_fits(browser, page, width):
    tab, said, asked = visit(browser, page, width)
    assert not said and asked == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("figure svg[role=img][aria-label]").count() >= 3
    assert tab.locator(".rl-verdict").count() > 10
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.thorough)])
def test_axe_finds_no_barrier(browser, page, scheme):
    tab, _, _ = visit(browser, page, 1400)
    tab.emulate_media(color_scheme=scheme)
    assert barriers(tab) == []
    tab.context.close()


def test_it_says_what_it_shows_and_is_small(page):
    text = page.read_text()
    assert len(text.encode()) < 4_000_000
    run = open_run(SHIPPED)
    assert "shipped reference run" in text and run.id in text and run.bundle.digest in text


@pytest.mark.parametrize("width", [360, 400])
@pytest.mark.thorough
def test_axe_finds_no_barrier_on_a_phone(browser, page, width):
    tab, _, _ = visit(browser, page, width)
    assert barriers(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "with everything unfolded"
    cut = """() => [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility()
        && e.getBoundingClientRect().right > innerWidth + 1 && !e.parentElement.closest(".scroll, pre, .rl-of"))
        .map((e) => e.outerHTML.slice(0, 99))"""
    assert tab.evaluate(cut) == [], "what sticks out lies in a region that scrolls"
    unreachable = """() => [...document.querySelectorAll("main *")].filter((e) =>
        e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
        && e.checkVisibility() && !(e.tabIndex === 0 && e.getAttribute("role") === "region"
        && (e.hasAttribute("aria-label") || e.hasAttribute("aria-labelledby")))).map((e) => e.outerHTML.slice(0, 99))"""
    assert tab.evaluate(unreachable) == []
    tab.context.close()


class Elements(HTMLParser):
    """The elements of the page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text()).found


def test_ids_are_unique_and_every_link_leads_somewhere(elements):
    ids = Counter(attributes["id"] for _, attributes in elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    inside = {link[1:] for link in links if link.startswith("#")}
    assert len(inside) > 100 and inside <= set(ids)
    outside = [link for link in links if not link.startswith("#")]
    assert outside and [link for link in outside if not link.startswith("https://")] == []


def test_headings_go_down_one_by_one(elements):
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_claim_has_its_place_with_verdict_source_and_folds(browser, page):
    tab, said, asked = visit(browser, page, 1400)
    for claim in claims():
        place = tab.locator(f"#claim-{claim.id}")
        badge = place.locator(".rl-verdict")
        assert badge.text_content() in ("holds", "fails", "inconclusive", "not measured")
        assert "content" in badge.evaluate("e => 'content ' + getComputedStyle(e, '::before').content")
        assert claim.sentence in place.text_content() and claim.id in place.text_content()
        folds = place.locator("details")
        assert folds.count() == 0 if not claim.rule else folds.count() >= 1, claim.id
    assert not said and asked == [page.as_uri()]
    tab.context.close()


def test_an_answer_leads_to_a_claim_whose_folds_work_without_a_mouse(browser, page):
    tab, said, _ = visit(browser, page, 1400)
    tab.locator(".rl-answer a", has_text=re.compile("^C13$")).click()
    place = tab.locator("#claim-C13")
    assert place.evaluate(
        "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().top < innerHeight"
    )
    command, rows = place.locator("details.rl-command"), place.locator("details.rl-evidence")
    for fold in (command, rows):
        assert not fold.locator("pre, table").first.is_visible()
        fold.locator("summary").focus()
        tab.keyboard.press("Enter")
        assert fold.locator("pre, table").first.is_visible()
    assert "rseqlab claims C13" in command.inner_text() and "option-access-cost.csv" in rows.inner_text()
    assert 2 <= rows.locator("tbody tr").count() <= 12
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command.get_by_role("button", name="Copy").click()
    command.get_by_role("button", name="Copied").wait_for()
    assert "option-access-cost" in tab.evaluate("navigator.clipboard.readText()") and not said
    tab.context.close()


def test_folds_open_without_script(browser, page):
    context = browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri() + "#claim-C13")
    tab.locator("#claim-C13 .rl-evidence summary").click()
    assert tab.locator("#claim-C13 .rl-evidence table").is_visible()
    context.close()


def test_keyboard_first_the_skip_link_then_what_one_can_do_and_search_is_announced(browser, page):
    tab, _, _ = visit(browser, page, 1400)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    for landmark in ("main", "navigation", "search", "banner", "contentinfo"):
        assert tab.get_by_role(landmark).count() == 1, landmark
    tab.get_by_role("searchbox").fill("mm_cid")
    found = tab.get_by_role("status").filter(has_text="found")
    assert int(found.inner_text().split()[0]) > 0, "an output is a live region"
    tab.context.close()


def test_it_prints_to_a_clean_pdf(browser, page, tmp_path):
    require_or_skip(shutil.which("pdftotext") is not None, "pdftotext", "install it with `make deps`")
    tab, _, _ = visit(browser, page, 1400)
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.set_viewport_size({"width": 665, "height": 1000})  # as wide as the paper within its margins
    too_wide = "e => e.getBoundingClientRect().right"
    assert (
        max(
            tab.locator("main table:visible, main figure:visible").evaluate_all(f"all => all.map({too_wide})")
        )
        < 670
    )
    tab.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    told = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "report.pdf", "-"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    pages = told.rstrip("\f").split("\f")
    assert 20 < len(pages) < 160 and all(one.strip() for one in pages), "no page is empty"
    assert "May the symbol grow?" in pages[0], "the answer stands on the first page"
    assert "Search in this page" not in told and "Show all code" not in told
    assert told.count("spread_percent") > tab.locator("th", has_text="spread_percent").count(), (
        "heads are repeated"
    )
    assert "rseqlab run --profile full registration-cost\n" not in told, "what is folded stays folded"
    tab.context.close()


def test_it_is_not_made_again_unless_something_changed(page):
    before = page.read_bytes()
    _, anew = publish.publish(open_run(SHIPPED), page.parent, False, lambda *progress: None)
    assert not anew and page.read_bytes() == before


def test_a_hostile_run_does_not_become_html(browser, tmp_path):
    folder = runs.copy_of(reference_runs()[-1], tmp_path / "run")
    machine = json.loads((folder / "machine.json").read_text())
    machine["facts"] |= {"cpu_model": HOSTILE, "kernel_release": HOSTILE, "libc": HOSTILE}
    (folder / "machine.json").write_text(json.dumps(machine))
    run = json.loads((folder / "run.json").read_text())
    run["experiments"]["cpu-id-read"] |= {"status": "skip", "reason": HOSTILE}
    (folder / "run.json").write_text(json.dumps(run))
    bundle.seal(folder)
    path, _ = publish.publish(open_run(folder), tmp_path / "out", False, lambda *progress: None)
    tab, said, asked = visit(browser, path, 1000)
    assert tab.evaluate("window.owned") is None and not said and asked == [path.as_uri()]
    assert tab.get_by_text("window.owned = 1").count() >= 3, "the strings must be shown, as text"
    tab.context.close()
