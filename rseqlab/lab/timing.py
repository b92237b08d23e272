"""The timed path: pinned, calibrated, interleaved in random order. Runs in a child; imports no numpy."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

MIN_BATCH_NS = 1_000_000
"""A batch shorter than this is dominated by reading the clock and by chance."""

ROUND_TO = 8
"""Batches are multiples of this many iterations (the loops in C are unrolled)."""

MARGIN = 1.15
"""A batch is meant to be so many times as long as asked, for the next trial to reach what was asked."""

FAR = 2
"""A trial so many times as long as asked is no measure of the batches that follow."""


@dataclass(frozen=True)
class Variant:
    """One thing to time. ``batch(iterations)`` does the work and returns its row; ``elapsed_ns`` is in it."""

    key: tuple[str, ...]
    batch: Callable[[int], dict]


@contextmanager
def pinned(cpu: int) -> Iterator[int]:
    """Keep the calling thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)


def calibrate(variant: Variant, batch_ns: int) -> int:
    """Iterations that take at least ``batch_ns``, and hardly more. The trial batches also warm the variant up.

    A trial that took far longer than asked met an interruption, or a contention that the short ones before it had
    not: from it the number is taken back once, and tried again.
    """
    iterations, taken_back = 64, False
    while True:
        elapsed_ns = max(1, variant.batch(iterations)["elapsed_ns"])
        if elapsed_ns >= batch_ns and (taken_back or elapsed_ns <= FAR * batch_ns or iterations <= ROUND_TO):
            return iterations
        taken_back = taken_back or elapsed_ns >= batch_ns
        change = min(10.0, MARGIN * batch_ns / elapsed_ns)
        if elapsed_ns < batch_ns:
            change = max(change, 1.1)
        iterations = (int(iterations * change) // ROUND_TO + 1) * ROUND_TO


def interleaved(
    variants: list[Variant],
    rounds: int,
    batch_ns: int,
    seed: int,
    pending: Callable[..., bool],
    known: Mapping[tuple, int] | None = None,
) -> Iterator[dict]:
    """Every variant once a round, in an order drawn anew each round; one row per batch.

    The order depends on ``seed`` and the round alone, so a resumed part goes on as it would have.
    ``known`` says the iterations of the variants that need no calibration, by their key.
    """
    if batch_ns < MIN_BATCH_NS:
        raise ValueError(f"batch_ns is {batch_ns}; at least {MIN_BATCH_NS}")
    iterations = dict(known or {})
    for number in range(rounds):
        order = list(variants)
        random.Random(seed * 1_000_003 + number).shuffle(order)
        for position, variant in enumerate(order):
            if not pending(number, *variant.key):
                continue
            if variant.key not in iterations:
                iterations[variant.key] = calibrate(variant, batch_ns)
            yield {
                "round": number,
                "position": position,
                "iterations": iterations[variant.key],
            } | variant.batch(iterations[variant.key])
