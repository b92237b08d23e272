"""A Dask cluster that is there already: a client of it, or what is missing, as a sentence."""

import logging
from typing import Any

from rseqlab.errors import LabError
from rseqlab.lab.bundle import printable

CONNECT_S = 30
_TALKERS = ("distributed", "distributed.client", "tornado", "asyncio")
"""What matters of their words is said here."""


def connect(address: str, option: str) -> Any:
    """A client of the cluster at this address, which ``option`` named. Raises LabError."""
    try:
        import distributed
    except ImportError:
        raise LabError(
            f"{option} needs the Python package distributed, which is not installed; "
            "`pip install rseqlab[cluster]` adds it."
        ) from None
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        client.wait_for_workers(1, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        reason = printable(str(error))[:300].rstrip(". ")
        raise LabError(
            f"The cluster at {printable(address)} does not answer or has no worker: {reason}. "
            "Start one with `dask scheduler`, and `dask worker ADDRESS` on each host."
        ) from None
    return client
