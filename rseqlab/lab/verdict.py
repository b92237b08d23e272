"""The one rule by which numbers get a verdict: claims, programs, benchmarks, counts, slices and the matrix's costs.

1. What differs if a stranger measures again must have been repeated: :data:`TIMED` results in builds of different
   code layout and in processes, others as their :class:`Needs` say. With less there is no verdict.
2. There is no verdict without an A/A control, a comparison of a thing with itself in the same rows.
3. The interval is widened by what the control's location differs from no difference, then rounded outwards to the
   digits that are printed. This interval is what is judged, printed and written, everywhere.
4. A verdict needs the whole interval on one side of the threshold. Otherwise it is ``inconclusive``, with the reason.

Counted instructions are deterministic: their clause is :func:`counted`, with the exact spread of repeats for the
interval and no builds. Reliability notes (:func:`control_note` and the following) weaken results and decide nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rseqlab.lab.stats import Interval, spread_percent

VERDICTS = HOLDS, FAILS, INCONCLUSIVE, NOT_MEASURED = "holds", "fails", "inconclusive", "not measured"
ABOVE, BELOW, NEITHER, NO_VERDICT = "above", "below", "no difference shown", "no verdict"
"""Which side of no difference the whole interval lies on."""
SAME = "the same"
"""Neither, and the whole interval lies within what is no reason to act."""

MIN_BUILDS = 8
"""Of 8 units the signed-rank interval is the first that one odd unit does not stretch from end to end."""
MIN_PROCESSES = 8
MIN_PAIRS = 30
MIN_PROGRAM_PAIRS = 12


@dataclass(frozen=True)
class Needs:
    """How often what may differ must have been repeated for a verdict; 0 where it cannot differ."""

    pairs: int
    processes: int = 0
    builds: int = 0


TIMED = Needs(MIN_PAIRS, MIN_PROCESSES, MIN_BUILDS)
"""Loops by the clock: another code layout may move them."""
UNTIMED = Needs(MIN_PAIRS, MIN_PROCESSES)
"""Bytes, and batches of an instruction-counting guest: no code layout moves them, a process or a boot does."""
PROGRAMS = Needs(MIN_PROGRAM_PAIRS)
"""Whole programs as they are shipped, each run a process of its own: nobody builds them in many layouts. Of 12 pairs
the exact interval leaves no difference out in 4.2 % of comparisons of a thing with itself (stats.false_share)."""


@dataclass(frozen=True)
class Allowed:
    """The closed range that a claim allows."""

    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def within(cls, factor: float) -> "Allowed":
        """An equivalence: between 1/factor and factor."""
        return cls(1 / factor, factor)


@dataclass(frozen=True)
class Judgement:
    """A verdict with the interval that was judged, widened and as printed."""

    verdict: str
    effect: Interval
    lacks: str | None = None
    """Why these rows carry no verdict, whatever their interval; None where the interval decided."""

    @property
    def note(self) -> str:
        """What a reader must know who sees the numbers: a sentence with a space before it, or nothing."""
        if self.lacks:
            return f" No verdict: {self.lacks}."
        return " No verdict: the interval reaches over a limit." if self.verdict == INCONCLUSIVE else ""


def judge(
    effect: Interval,
    control: Interval | None,
    allowed: Allowed,
    needs: Needs = TIMED,
    *,
    difference: bool = False,
) -> Judgement:
    """``holds`` where the whole widened interval lies within what is allowed, ``fails`` where none of it does.

    ``difference``: effect and control are differences, to which no difference is 0, not 1.
    """
    wide, lacks = widened(effect, control, difference=difference), lacking(effect, control, needs)
    if lacks:
        return Judgement(INCONCLUSIVE, wide, lacks)
    if allowed.low <= wide.low and wide.high <= allowed.high:
        return Judgement(HOLDS, wide)
    outside = wide.high < allowed.low or wide.low > allowed.high
    return Judgement(FAILS if outside else INCONCLUSIVE, wide)


def side(effect: Interval, control: Interval | None, needs: Needs = TIMED) -> Judgement:
    """Of a ratio: ``above`` or ``below`` 1 with the whole widened interval, or ``no difference shown``."""
    wide, lacks = widened(effect, control), lacking(effect, control, needs)
    if lacks:
        return Judgement(NO_VERDICT, wide, lacks)
    return Judgement(ABOVE if wide.low > 1 else BELOW if wide.high < 1 else NEITHER, wide)


def change(effect: Interval, control: Interval | None, same_within: float) -> Judgement:
    """As :func:`side`, of something now against before; ``the same`` where the interval is within 1/factor and factor."""
    found, same = side(effect, control), Allowed.within(same_within)
    within = same.low <= found.effect.low and found.effect.high <= same.high
    return replace(found, verdict=SAME) if found.verdict == NEITHER and within else found


def counted(low: float, high: float, allowed: Allowed) -> str:
    """The verdict of a count whose repeats lie between ``low`` and ``high``: deterministic, so nothing is estimated."""
    if allowed.low <= low and high <= allowed.high:
        return HOLDS
    return FAILS if high < allowed.low or low > allowed.high else INCONCLUSIVE


def all_of(verdicts: Sequence[str]) -> str:
    """The verdict of a claim about each of several: one that fails is enough to fail."""
    if not verdicts:
        raise ValueError("no verdict to put together")
    return next((one for one in (FAILS, INCONCLUSIVE, NOT_MEASURED) if one in verdicts), HOLDS)


def widened(effect: Interval, control: Interval | None, *, difference: bool = False) -> Interval:
    """The interval that is judged and printed: wider by what the control differs from itself, ends rounded outwards."""
    if control is None:
        return rounded(effect)
    if difference:
        more = abs(control.median)
        return rounded(replace(effect, low=effect.low - more, high=effect.high + more, widened=more))
    factor = max(control.median, 1 / control.median)
    return rounded(replace(effect, low=effect.low / factor, high=effect.high * factor, widened=factor))


def lacking(effect: Interval, control: Interval | None, needs: Needs) -> str | None:
    """Why these rows carry no verdict, whatever their interval; None where they do."""
    if control is None:
        return "there is no A/A control"
    for what, found, least in (
        ("build", min(effect.builds, control.builds), needs.builds),
        ("process", min(effect.processes, control.processes), needs.processes),
        ("pair", min(effect.samples, control.samples), needs.pairs),
    ):
        if found < least:
            return f"measured in {plural(max(1, found), what)}; a verdict needs {least}"
    return None


def rounded(found: Interval) -> Interval:
    """With the digits of :func:`number`, the ends outwards."""
    low, high = _outwards(found.low, math.floor), _outwards(found.high, math.ceil)
    middle = float(number(found.median))
    return replace(found, median=min(max(middle, low), high), low=low, high=high)


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 1


def _outwards(value: float, towards) -> float:
    scale = 10 ** _digits(value)
    # What is a hair beyond a printed number by the arithmetic of floats is that number.
    return round(towards(round(value * scale, 6)) / scale, 3)


def number(value: float) -> str:
    """As every view prints an effect and its ends.

    >>> number(1.05), number(12.345)
    ('1.050', '12.3')
    """
    return f"{value:.{_digits(value)}f}"


def ends(effect: Interval) -> str:
    """``[low, high]``."""
    return f"[{number(effect.low)}, {number(effect.high)}]"


def basis(effect: Interval) -> str:
    """What an interval is over: ``160 pairs of 16 processes of 8 builds``."""
    words = [plural(effect.samples, "pair")]
    if effect.unit != "pair" or effect.processes > 1:
        words.append(plural(effect.processes, "process"))
    if effect.builds:
        words.append(plural(effect.builds, "build"))
    return " of ".join(words)


def words(effect: Interval, scale: float = 1.0) -> str:
    """The interval, what widened it, and what it is over, in brackets. ``scale`` 100 prints shares as per cent."""
    low, high = (number(scale * end) for end in (effect.low, effect.high))
    more = ""
    if effect.widened is not None:
        more = ", widened by the A/A control"
    return f"[95 % {low} to {high}{more}; {basis(effect)}]"


def plural(count: int, noun: str) -> str:
    """``one build``, ``8 builds``, ``16 processes``."""
    many = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"one {noun}" if count == 1 else f"{count:,} {many}"


# ---- reliability notes ----

SPREAD_LIMIT_PERCENT = 10
STEAL_LIMIT_PERCENT = 1
CONTROL_LIMIT_PERCENT = 2


def instability(name: str, series: Mapping[str, Sequence[float]]) -> str | None:
    """In words, which series are a weak basis and why, with the worst figure and the remedy; None if none."""
    few = [label for label, values in series.items() if len(values) < MIN_PAIRS]
    if few:
        return f"{name}: {len(few)} of {len(series)} series have fewer than {MIN_PAIRS} samples; measure with --profile full."
    spreads = {label: spread_percent(values) for label, values in series.items()}
    wide = [label for label, spread in spreads.items() if spread > SPREAD_LIMIT_PERCENT]
    if not wide:
        return None
    worst = max(wide, key=lambda label: spreads[label])
    return (
        f"{name}: in {len(wide)} of {len(series)} series the middle half of the samples reaches further than "
        f"±{SPREAD_LIMIT_PERCENT} % around the median, furthest in {worst} (±{spreads[worst]:.0f} %); "
        "stop other load and measure again."
    )


def control_note(name: str, control: Interval) -> str | None:
    """In words, that an A/A control differs from itself; None where it does not."""
    deviation = 100 * (control.median - 1)
    if abs(deviation) > CONTROL_LIMIT_PERCENT and not control.low <= 1 <= control.high:
        return (
            f"{name}: the A/A control differs from itself by {deviation:+.1f} %; effects of that size "
            "are not to be believed here."
        )
    return None


def steal_note(name: str, steal_percent: float | None) -> str | None:
    """In words, that the hypervisor took time away; None where it did not or does not say."""
    if steal_percent is not None and steal_percent > STEAL_LIMIT_PERCENT:
        return f"{name}: the hypervisor took {steal_percent:.1f} % of the time away while it was measured."
    return None
