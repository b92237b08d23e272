"""Controls that put one scene together and play it, live, in a child process. For JupyterLab only."""

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass

from rseqlab.lab import compile, probe
from rseqlab.lab.child import Child
from rseqlab.options import scenes
from rseqlab.options.criteria import outcome
from rseqlab.options.schemes import LAYOUTS, SCHEMES, SLICE

TIMEOUT_S = 120
CHOICES = {
    "option": tuple(scheme.id for scheme in SCHEMES),
    "libc": tuple(layout.name for layout in LAYOUTS),
    "align": (scenes.AS_ITS_SIZE, *dict.fromkeys(str(layout.align_bytes) for layout in LAYOUTS)),
    "library": tuple(layout.name for layout in LAYOUTS),
    "how": ("linked", "load"),
    "tls_model": ("initial-exec", "global-dynamic"),
    "defines": tuple(scenes.BINDINGS),
    "order": ("library first", "libc first"),
}
"""What a reader may choose. A layout is the end of its last field, in its size."""
LABELS = {
    "option": "option",
    "libc": "libc's layout",
    "align": "its alignment",
    "library": "library's layout",
    "how": "library is",
    "tls_model": "TLS model",
    "defines": "also defined by",
    "order": "link order",
}
FIRST = {"option": "grow-symbol", "libc": SLICE.name, "defines": "the program, strongly"}


@dataclass(frozen=True)
class Played:
    """What one scene was worth, and what it said."""

    chosen: Mapping[str, str]
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<p class='rl-claim'>{html.escape(self.text)}</p>"


def play(**chosen: str) -> Played:
    """Build and play one scene now. What is not chosen is as in the first picture of the controls."""
    whole = {name: FIRST.get(name, values[0]) for name, values in CHOICES.items()} | chosen
    for name, value in whole.items():
        if value not in CHOICES.get(name, ()):
            known = ", ".join(CHOICES.get(name, CHOICES))
            raise ValueError(f"{name}={value!r} is not one of: {known}")
    if reason := compile.missing() or probe.kernel_refusal():
        return Played(whole, f"Not measured: {reason}")
    child = Child(scenes.play_one, whole, probe.LIBC_LEAVES, TIMEOUT_S)
    rows = list(child)
    if not rows:
        return Played(
            whole, f"Not measured: the scene ended with {child.outcome.status}: {child.outcome.reason}"
        )
    found = outcome(rows[0])
    word = (
        "Works" if found.good else "Could not be built" if found.good is None else f"Breaks, {found.manner}"
    )
    scene = ", ".join(f"{LABELS[name]} {value}" for name, value in whole.items())
    return Played(whole, f"{word}: {found.why}. ({scene}; it ended with {rows[0]['ended']}.)")


@dataclass(frozen=True)
class OnAPage:
    """What stands in the place of the controls where nobody can move them, and the call that does the same."""

    call: str = "playground.play(option=..., libc=...)"

    def __repr__(self) -> str:
        return f"Open this notebook in JupyterLab (`make lab`) for the controls, or call {self.call}."

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"


def controls():
    """The controls, live; on a page, or without ipywidgets, a sentence."""
    if os.environ.get("RSEQLAB_PAGE"):
        return OnAPage()
    try:
        import ipywidgets as widgets
        from IPython.display import display
    except ImportError:
        return OnAPage()
    fields = {
        name: widgets.Dropdown(
            options=values,
            value=FIRST.get(name, values[0]),
            description=LABELS[name],
            style={"description_width": "9em"},
        )
        for name, values in CHOICES.items()
    }
    button, shown = widgets.Button(description="Play"), widgets.Output()

    def clicked(_) -> None:
        button.disabled = True
        try:
            shown.clear_output()
            with shown:
                display(play(**{name: field.value for name, field in fields.items()}))
        finally:
            button.disabled = False

    button.on_click(clicked)
    return widgets.VBox([*fields.values(), button, shown])
