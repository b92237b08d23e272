"""What tests/test_percpu.py does to the structures: run in a child with a stated environment.

python percpu_check.py self|libc cpu_id|mm_cid [fence-denied]
"""

import contextlib
import gc
import os
import resource
import sys
import threading
from pathlib import Path

from rseqlab import host, percpu, rseq
from rseqlab.lab.timing import pinned


def in_threads(count, work):
    """Run ``work(number)`` in threads of their own, each with an area, and raise what any of them raised."""
    raised = []

    def body(number):
        try:
            with area():
                work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if raised:
        raise raised[0]


def counter():
    with percpu.Counter(BY) as counter:
        in_threads(4, lambda _: [counter.add(2) for _ in range(2000)])
        assert counter.value == 4 * 2 * 2000 == sum(counter.values())
        assert (
            counter.bytes_per_index >= 128
            and counter.mapped_bytes >= counter.bytes_per_index * counter.indices
        )
        assert f"value={counter.value}" in repr(counter) and str(counter.value) in counter._repr_html_()
    with area(), percpu.Counter("node_id") as nodes:
        nodes.add(5)
        assert nodes.value == 5


def lock():
    with percpu.Lock(BY) as lock:
        guarded = [0] * lock.indices

        def work(_):
            for _ in range(500):
                with lock.held() as index:
                    seen = guarded[index]
                    os.sched_yield()
                    guarded[index] = seen + 1

        in_threads(4, work)
        assert sum(guarded) == 4 * 500
        with area(), pinned(host.allowed_cpus()[-1]):
            index = lock.acquire()
            assert lock.try_acquire() is None
            lock.release(index)
            assert lock.try_acquire() == index
            lock.release(index)
        for wrong in (0, lock.indices):
            must_refuse(lambda wrong=wrong: lock.release(wrong))


def lists():
    for takeable in (False, True):
        with percpu.List(BY, takeable=takeable) as found:
            nodes = [percpu.Node(number) for number in range(8)]

            def work(number, found=found, nodes=nodes):
                found.push(nodes[number])
                for _ in range(500):
                    node = found.pop()
                    if node is not None:
                        found.push(node)

            in_threads(8, work)
            assert len(found) == 8
            must_refuse(lambda found=found, nodes=nodes: found.push(nodes[0]))
            must_refuse(lambda found=found: found.push("text"))
            if takeable:
                with area():
                    taken = [node for index in range(found.indices) for node in found.take_over(index)]
                assert sorted(node.value for node in taken) == list(range(8)) and len(found) == 0
            else:
                must_refuse(lambda found=found: found.take_over(0))
            with area(), pinned(host.allowed_cpus()[0]):
                first, second = percpu.Node("first"), percpu.Node("second")
                found.push(first)
                found.push(second)
                assert "second" in (found.pop().value, found.pop().value)


def taking_over():
    ways = list(percpu.WAYS_TO_TAKE) if BY == "cpu_id" else ["fence-all"]
    here, there = host.allowed_cpus()[0], host.allowed_cpus()[-1]
    for way in ways:
        with area(), percpu.List(BY, takeable=True) as found:
            with pinned(there):
                index = there if BY == "cpu_id" else rseq.here().read("mm_cid")
                found.push(percpu.Node(way))
            with pinned(here):
                if BY == "cpu_id":
                    assert [node.value for node in found.take_over(index, way)] == [way], way
                    assert found.take_over(index, way) == []
                assert os.sched_getaffinity(0) == {here}, "moving must end where it began"
    with area(), percpu.List(BY, takeable=True) as found:
        must_refuse(lambda: found.take_over(0, "by force"))
        must_refuse(lambda: found.take_over(found.indices))
        if BY == "mm_cid":
            must_refuse(lambda: found.take_over(0, "fence-cpu"))
    percpu.fence()
    percpu.fence(there)


def ring():
    with area(), pinned(host.allowed_cpus()[-1]), percpu.Ring(8, BY) as ring:
        assert [ring.push(number) for number in range(-4, 5)] == [True] * 8 + [False]
        assert [ring.pop() for _ in range(9)] == [*range(-4, 4), None]
    for wrong in (0, 1, 3, 1 << 40, "eight"):
        must_refuse(lambda wrong=wrong: percpu.Ring(wrong, BY))


def byte_ring():
    with area(), pinned(host.allowed_cpus()[-1]), percpu.ByteRing(128, BY) as ring:
        for length in [*range(ring.largest_record_bytes + 1), *[50] * 20]:
            record = bytes((length + number) % 256 for number in range(length))
            assert ring.write(record) and ring.read() == record
        assert ring.read() is None
        written = 0
        while ring.write(b"0123456789"):
            written += 1
        assert written >= 3 and [ring.read() for _ in range(written + 1)] == [b"0123456789"] * written + [
            None
        ]
        must_refuse(lambda: ring.write(bytes(ring.largest_record_bytes + 1)))
    for wrong in (32, 100):
        must_refuse(lambda wrong=wrong: percpu.ByteRing(wrong, BY))


def pool():
    with percpu.Pool(64, 100, BY) as pool, area():
        blocks = [pool.alloc() for _ in range(100)]
        assert pool.alloc() is None and len({block.address for block in blocks}) == 100
        for number, block in enumerate(blocks):
            block.memory[:] = bytes([number]) * 64
        assert all(block.memory[:] == bytes([number]) * 64 for number, block in enumerate(blocks))
        with pinned(host.allowed_cpus()[0]):
            for block in blocks:
                pool.free(block)
        must_refuse(lambda: pool.free(blocks[0]))
        must_refuse(lambda: blocks[0].memory)
        with pinned(host.allowed_cpus()[-1]):  # what another CPU has is taken over
            assert len({pool.alloc().address for _ in range(100)}) == 100
    must_refuse(lambda: percpu.Pool(12, 1, BY))
    must_refuse(lambda: percpu.Pool(64, 0, BY))


def no_leak():
    makers = [
        lambda: percpu.Counter(BY),
        lambda: percpu.Lock(BY),
        lambda: percpu.List(BY, takeable=True),
        lambda: percpu.Ring(1024, BY),
        lambda: percpu.ByteRing(65536, BY),
        lambda: percpu.Pool(64, 1000, BY),
    ]

    def make(count):
        with area():
            for number in range(count):
                with makers[number % len(makers)]() as made:
                    if isinstance(made, percpu.Pool):
                        made.alloc()

    make(600)
    gc.collect()
    mappings, peak = len(Path("/proc/self/maps").read_text().splitlines()), peak_kib()
    make(10_000)
    gc.collect()
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= mappings + 3
    assert peak_kib() - peak < 2048, f"{peak_kib() - peak} KiB more"


def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def affinity():
    """With one CPU only, whatever its number: memory is by number, so no other slot is touched."""
    cpu = host.allowed_cpus()[-1]
    os.sched_setaffinity(0, {cpu})
    with area(), percpu.Counter("cpu_id") as counter:
        counter.add()
        assert counter.values() == [0] * cpu + [1] + [0] * (counter.indices - cpu - 1)


def misuse():
    must_refuse(lambda: percpu.Counter("thread"), "cpu_id, mm_cid, node_id")
    must_refuse(lambda: percpu.Lock("node_id"), "at the same time")
    with area():
        closed = percpu.Counter(BY)
        closed.close()
        closed.close()
        must_refuse(closed.add, "closed")
        assert "closed" in repr(closed) and closed.value == 0


def unregistered():
    """Without an area nothing may be touched: cpu_id would be no index."""
    if OWNER == "self":
        with percpu.Counter(BY) as counter:
            try:
                counter.add()
            except rseq.NotRegistered as error:
                assert "register()" in str(error)
            else:
                raise AssertionError("a thread without an area was let in")
            assert counter.value == 0


def no_fence():
    """In a sandbox without membarrier: the thread moves instead, and where it cannot, that is said."""
    assert percpu.fence_refusal() and "EPERM" in percpu.fence_refusal()
    must_refuse(percpu.fence, "EPERM")
    with area(), percpu.List(BY, takeable=True) as found:
        for cpu in host.allowed_cpus():
            with pinned(cpu):
                found.push(percpu.Node(cpu))
        if BY == "cpu_id":
            must_refuse(lambda: found.take_over(cpu, "fence-cpu"), "EPERM")
            assert [[node.value for node in found.take_over(cpu)] for cpu in host.allowed_cpus()] == [
                [cpu] for cpu in host.allowed_cpus()
            ]
        else:
            must_refuse(lambda: found.take_over(0), "fence-all answered EPERM")
    if BY == "cpu_id":
        pool()


def must_refuse(call, part=""):
    try:
        call()
    except percpu.PerCpuError as error:
        assert part in str(error), error
    else:
        raise AssertionError("this must be refused")


if __name__ == "__main__":
    OWNER, BY, *denied = sys.argv[1:]
    area = rseq.register if OWNER == "self" else contextlib.nullcontext
    for check in (
        (no_fence,)
        if denied
        else (
            counter,
            lock,
            lists,
            taking_over,
            ring,
            byte_ring,
            pool,
            no_leak,
            misuse,
            unregistered,
            affinity,
        )
    ):
        check()
        print(check.__name__)
