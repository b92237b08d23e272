"""The whole report, from a shipped run: made once, not again, in a real browser, and from a hostile run."""

import json
import shutil

import pytest
from accessibility import barriers

from rseqlab.lab import bundle
from rseqlab.study import publish
from rseqlab.study.run import open_run, reference_runs

HOSTILE = "</style><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path, anew = publish.publish(open_run(reference_runs()[-1]), folder, False, lambda *progress: None)
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


@pytest.mark.parametrize("width", [400, 1400])
def test_opens_offline_silently_and_fits(browser, page, width):
    tab, said, asked = visit(browser, page, width)
    assert not said and asked == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("figure svg[role=img][aria-label]").count() >= 3
    assert tab.locator(".rl-verdict").count() > 10
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser, page, scheme):
    tab, _, _ = visit(browser, page, 1400)
    tab.emulate_media(color_scheme=scheme)
    assert barriers(tab) == []
    tab.context.close()


def test_it_says_what_it_shows_and_is_small(page):
    text = page.read_text()
    assert len(text) < 5_000_000
    run = open_run(reference_runs()[-1])
    assert "shipped reference run" in text and run.id in text and run.bundle.digest in text


def test_it_is_not_made_again_unless_something_changed(page):
    before = page.read_bytes()
    _, anew = publish.publish(open_run(reference_runs()[-1]), page.parent, False, lambda *progress: None)
    assert not anew and page.read_bytes() == before


def test_a_hostile_run_does_not_become_html(browser, tmp_path):
    folder = shutil.copytree(reference_runs()[-1], tmp_path / "run")
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
