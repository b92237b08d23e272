"""What tests run in a child."""

import importlib
import os
import signal
import subprocess
import time

from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import measure_part


def finish(arguments):
    for number in range(arguments["count"]):
        yield {"number": number, "environment": dict(os.environ)}


def crash(_):
    yield {"number": 0}
    os.kill(os.getpid(), signal.SIGSEGV)
    yield {"number": 1}


def fail(_):
    yield {"number": 0}
    raise Failed("the sum is wrong")


def raise_something(_):
    yield {"number": 0}
    raise ValueError("no such thing")


def hang(_):
    yield {"number": 0}
    time.sleep(600)


def talk(_):
    print('{"number": 99}')
    yield {"number": 0}


def leave_a_grandchild(_):
    grandchild = subprocess.Popen(["sleep", "600"])
    yield {"child": os.getpid(), "grandchild": grandchild.pid}
    time.sleep(600)


def measure_changed(arguments):
    """A part of an experiment, with one name of its module set to what a Python expression gives."""
    setattr(importlib.import_module(arguments["module"]), arguments["name"], eval(arguments["value"]))
    yield from measure_part({"module": arguments["module"], "arguments": arguments["arguments"], "done": []})
