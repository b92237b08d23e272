"""Controls for JupyterLab: a struct to design, techniques and threads to pick, kernels to ask.

They only choose; what they show is computed and executed by :mod:`design` and :mod:`explore`, whose objects have a
text twin. All of them are a browser's own inputs with a label, so Tab, arrows and space do everything; a line
below says what happened, in the role that screen readers watch. Scenes are played by a thread that waits for a child process:
the kernel stays free, *Stop* ends the child, and interrupting the kernel ends nothing.
"""

import html
import threading
from collections.abc import Callable

import ipywidgets as widgets

from rseqlab import layout
from rseqlab.errors import LabError, UsageError
from rseqlab.study import explore
from rseqlab.study.design import LARGEST_ALIGN_BYTES, LARGEST_FIELD_BYTES, Design
from rseqlab.study.run import StudyRun
from rseqlab.study.tables import Sentences
from rseqlab.vm.matrix import MODES

_LABEL = {"description_width": "11em"}
_ROW = {"display": "flex", "flex_flow": "row wrap"}


def show(place: widgets.Output, *things) -> None:
    """Put these in the place of what was there, each as HTML with its text twin. Any thread may call it."""
    place.outputs = tuple(
        {
            "output_type": "display_data",
            "data": {"text/plain": str(thing), "text/html": thing._repr_html_()},
            "metadata": {},
        }
        for thing in things
    )


class Said(widgets.HTML):
    """One line that says what happened; screen readers read it out."""

    def say(self, text: str, role: str = "status") -> None:
        """``role`` is ``alert`` where something was refused."""
        self.value = f"<span role='{role}'>{html.escape(text)}</span>"


def _choice(label: str, options, value) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options, value=value, description=label, style=_LABEL, layout={"width": "28em"}
    )


def _number(label: str, value: int, least: int, most: int) -> widgets.BoundedIntText:
    return widgets.BoundedIntText(value=value, min=least, max=most, description=label, style=_LABEL)


def _tick(label: str, on: bool = True) -> widgets.Checkbox:
    return widgets.Checkbox(value=on, description=label, indent=False, layout={"width": "auto"})


def _ticks(names, changed, about: Callable[[object], str] = str) -> dict:
    """Name to its box; all are ticked at first."""
    found = {name: _tick(about(name)) for name in names}
    for one in found.values():
        one.observe(changed, "value")
    return found


def _ticked(boxes: dict) -> list:
    return [name for name, box in boxes.items() if box.value]


class Designer(widgets.VBox):
    """Design a struct rseq. ``design`` is what it stands at; it can be taken to another cell."""

    def __init__(self) -> None:
        self.design = Design()
        self.base = _choice("begins as Linux", layout.RELEASES, self.design.base)
        self.field_name = widgets.Text(
            value="hint",
            description="new field",
            style=_LABEL,
            continuous_update=False,  # letter by letter, the button could arrive before the last of them
        )
        self.field_bytes = _number("its bytes", 8, 1, LARGEST_FIELD_BYTES)
        powers = [1 << power for power in range(LARGEST_ALIGN_BYTES.bit_length())]
        self.field_align = _choice(
            "its alignment", [("of its type", 0), *((str(one), one) for one in powers)], 0
        )
        self.add_field = widgets.Button(description="Add the field")
        self.take_field = widgets.Button(description="Take the last away")
        self.announced = _number("feature size", 0, 0, layout.LARGEST_BYTES)
        self.option = _choice("under the option", layout.OPTIONS, "grow-symbol")
        self.play = widgets.Button(description="Play its scenes")
        self.stop = widgets.Button(description="Stop", disabled=True)
        self.progress = widgets.IntProgress(value=0, max=1, description="scenes")
        self.said, self.shown, self.played = Said(), widgets.Output(), widgets.Output()
        self.player: threading.Thread | None = None
        self._stopped = threading.Event()
        super().__init__(
            [
                self.base,
                self.field_name,
                self.field_bytes,
                self.field_align,
                widgets.HBox([self.add_field, self.take_field]),
                self.announced,
                widgets.HTML("Feature size 0 is the end of the last field."),
                self.option,
                widgets.HBox([self.play, self.stop, self.progress]),
                self.said,
                self.shown,
                self.played,
            ]
        )
        self.add_field.on_click(self._add)
        self.take_field.on_click(self._take)
        self.play.on_click(self._play)
        self.stop.on_click(lambda _: self._stopped.set())
        for one in (self.base, self.announced):
            one.observe(self._redesign, "value")
        self.option.observe(lambda _: self._show(), "value")
        self._show()

    def _add(self, _) -> None:
        self._try(
            lambda: self.design.add(self.field_name.value, self.field_bytes.value, self.field_align.value)
        )

    def _take(self, _) -> None:
        self._try(lambda: Design(self.design.base, self.design.fields[:-1], self.design.feature_bytes))

    def _redesign(self, _) -> None:
        self._try(lambda: Design(self.base.value, self.design.fields, self.announced.value))

    def _try(self, make) -> None:
        try:
            self.design = make()
        except UsageError as refused:
            self.said.say(f"{refused} The design stays as it was.", "alert")
            return
        self._show()

    def _show(self) -> None:
        design, option = self.design, self.option.value
        try:
            drawn = design.figure(option)
        except UsageError as refused:
            drawn = Sentences((str(refused),))
        show(self.shown, drawn, design.notes(), design.memory(), design.survivors(option))
        self.said.say(design.notes().lines[0])

    def _play(self, _) -> None:
        """Play in a thread: a child is waited for, and the controls go on working."""
        self._stopped.clear()
        self.play.disabled, self.stop.disabled = True, False
        self.said.say("Playing: what is not built yet is built first.")
        self.player = threading.Thread(
            target=self._played, args=(self.design, self.option.value), daemon=True
        )
        self.player.start()

    def _played(self, design: Design, option: str) -> None:
        try:
            found = design.play(option, self._heard)
            show(self.played, found)
            self.said.say(found.sentence())
        except LabError as refused:
            self.said.say(str(refused), "alert")
        finally:
            self.play.disabled, self.stop.disabled = False, True

    def _heard(self, done: int, total: int) -> bool:
        self.progress.max, self.progress.value = total, done
        return not self._stopped.is_set()


class PerCpuPicker(widgets.VBox):
    """Choose a structure, its techniques and the numbers of threads; the figure follows."""

    def __init__(self, run: StudyRun) -> None:
        self.run, self.known = run, explore.techniques(run)
        first = next(iter(self.known))
        self.structure = _choice("structure", list(self.known), first)
        self.threads = _ticks(
            explore.threads(run), self._draw, lambda count: f"{count} thread{'s' * (count > 1)}"
        )
        self.techniques: dict[str, widgets.Checkbox] = {}
        self.places, self.said, self.shown = widgets.Box(layout=_ROW), Said(), widgets.Output()
        threads = widgets.Box([widgets.Label("threads:"), *self.threads.values()], layout=_ROW)
        super().__init__([self.structure, self.places, threads, self.said, self.shown])
        self.structure.observe(self._other, "value")
        self._other(None)

    def _other(self, _) -> None:
        self.techniques = _ticks(self.known[self.structure.value], self._draw)
        self.places.children = (widgets.Label("techniques:"), *self.techniques.values())
        self._draw(None)

    def _draw(self, _) -> None:
        names, counts = _ticked(self.techniques), _ticked(self.threads)
        if not names or not counts:
            self.said.say("Tick at least one technique and one number of threads.", "alert")
            return
        found = explore.percpu(self.run, self.structure.value, names, counts)
        show(self.shown, found)
        self.said.say(f"{self.structure.value}: {', '.join(names)}; threads {', '.join(map(str, counts))}.")


class KernelPicker(widgets.VBox):
    """Choose who registered, a question, kernels and a libc; the table of answers follows."""

    def __init__(self, run: StudyRun) -> None:
        self.run, self.known = run, explore.choices(run)
        modes = [(MODES[mode], mode) for mode in self.known["modes"]]
        self.mode = _choice("registered", modes, modes[-1][1])
        questions = self.known[f"questions of {self.mode.value}"]
        self.question = _choice("question", questions, questions[0])
        self.libc = _choice("libc", [("each", ""), *((one, one) for one in self.known["libcs"])], "")
        self.kernels = _ticks(self.known["kernels"], self._draw, "Linux {}".format)
        self.archs = _ticks(self.known["archs"], self._draw)
        self.differing = _tick("only answers that differ", on=False)
        self.said, self.shown = Said(), widgets.Output()
        super().__init__(
            [
                self.mode,
                self.question,
                self.libc,
                widgets.Box([widgets.Label("kernels:"), *self.kernels.values()], layout=_ROW),
                widgets.Box([widgets.Label("architectures:"), *self.archs.values()], layout=_ROW),
                self.differing,
                self.said,
                self.shown,
            ]
        )
        self.mode.observe(self._other, "value")
        for one in (self.question, self.libc, self.differing):
            one.observe(self._draw, "value")
        self._draw(None)

    def _other(self, _) -> None:
        questions, was = self.known[f"questions of {self.mode.value}"], self.question.value
        self.question.options = questions  # takes its first, and draws
        if was in questions:
            self.question.value = was

    def _draw(self, _) -> None:
        kernels, archs = _ticked(self.kernels), _ticked(self.archs)
        if not kernels or not archs or self.question.value is None:
            self.said.say("Tick at least one kernel and one architecture.", "alert")
            return
        chosen = (self.mode.value, self.question.value, kernels, archs, self.libc.value, self.differing.value)
        found = explore.kernel_answers(self.run, *chosen)
        show(self.shown, found)
        self.said.say(getattr(found, "caption", str(found)))
