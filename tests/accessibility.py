"""axe-core on a page in a real browser: what its rules call serious or critical, in words."""

BAD = ("serious", "critical")


def barriers(page) -> list[str]:
    """What would keep a reader out, each with the first places where it was found; everything is unfolded first."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = Axe().run(page).response
    assert found["passes"], "axe-core looked at nothing"
    return [
        f"{one['impact']}, {one['id']}: {one['help']}: {len(one['nodes'])} places, as "
        + " ".join(node["html"][:160] for node in one["nodes"][:3])
        for one in found["violations"]
        if one["impact"] in BAD
    ]
