"""Per-CPU structures on real critical sections: counter, lock, list, ring, byte ring, pool.

Each has one instance of its data per index (``cpu_id``, or ``mm_cid`` where the kernel keeps it live), and
every operation is one critical section of the calling thread, which therefore needs an rseq area: libc's,
or one of :func:`rseqlab.rseq.register`. What each does, in C, is said in native/rseqlab.h.
"""

import errno
import html
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rseqlab import host, native, rseq
from rseqlab.errors import LabError

BY = ("cpu_id", "mm_cid")


class PerCpuError(LabError):
    """A structure cannot be made or used so. The message says what was asked and what is allowed."""


def fence_refusal() -> str | None:
    """Why other CPUs' sections cannot be fenced here (membarrier(2), Linux 5.10), or None where they can."""
    answer = -native.core()[1].rl_fence_register()
    if not answer:
        return None
    return f"membarrier's rseq command answers {errno.errorcode.get(answer, answer)}: {os.strerror(answer)}"


def fence(cpu: int | None = None) -> None:
    """Return once every section that runs now, on one CPU or on all, has committed or was aborted.

    Source: membarrier(2), MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, Linux 5.10 (2a36ab717e8f). Raises
    PerCpuError where the kernel refuses.
    """
    if refusal := fence_refusal():
        raise PerCpuError(f"fence: {refusal}")
    if answer := -native.core()[1].rl_fence(-1 if cpu is None else cpu):
        raise PerCpuError(f"fence(cpu={cpu}): the kernel answered {errno.errorcode.get(answer, answer)}")


class PerCpu:
    """Memory by index: what all structures share. Close it, or use it as a context manager.

    ``bytes_per_index`` is the distance from one index to the next: at least two cache lines, so that no two
    share one, and whole pages where a slot is that large. ``mapped_bytes`` is address space; an index that
    no thread ever has takes no memory.
    """

    allowed = BY

    def __init__(self, by: str = "cpu_id"):
        if by not in self.allowed:
            raise PerCpuError(self._wrong_index(by))
        self._ffi, self._lib = native.core()
        self.by = by
        self.indices = host.possible_cpus()
        """One more than the largest CPU number that the kernel may use: numbers may have holes."""
        self._memory = self._ffi.new("struct rl_percpu *")
        self._aborts = self._ffi.new("struct rl_aborts *")
        self._open = True
        answer = -self._create(getattr(self._lib, f"RL_BY_{by.upper()}"))
        if answer:
            self._open = False
            raise PerCpuError(f"{type(self).__name__}: {os.strerror(answer)}; {self._asked()}")

    def _create(self, by: int) -> int:
        """Maps the memory; 0 or -errno."""
        return self._lib.rl_percpu_create(self._memory, self._slot_bytes, 0, self.indices, by)

    _slot_bytes = 8

    def _asked(self) -> str:
        return f"asked for {self.indices} indices"

    def _wrong_index(self, by: str) -> str:
        why = (
            " A node's CPUs run at the same time, so a section by node_id has nothing to itself; "
            "only a Counter can be kept by node, with atomic instructions."
            if by == "node_id"
            else ""
        )
        return f"{type(self).__name__}: by is {by!r}; allowed are {', '.join(self.allowed)}.{why}"

    @property
    def bytes_per_index(self) -> int:
        """Address space per index."""
        return 1 << self._memory.shift

    @property
    def mapped_bytes(self) -> int:
        """Address space of all indices."""
        return self._memory.mapped_bytes if self._open else 0

    @property
    def aborts(self) -> dict[str, int]:
        """Attempts that did not commit, by cause; each was made again.

        ``moved``: the index had changed before the section began. ``migrated``, ``interrupted``: aborted by
        the kernel, and the thread has another or the same index now (preemption or a signal).
        """
        return {name: getattr(self._aborts, name) for name in ("moved", "migrated", "interrupted")}

    def _here(self):
        """The calling thread, as the C functions want it. Raises what :func:`rseqlab.rseq.here` raises."""
        if not self._open:
            raise PerCpuError(f"{type(self).__name__}: it was closed; make a new one")
        area = rseq.here()
        area.read(self.by)  # refuses a field that is not live, with the reason
        return self._ffi.new("struct rl_here *", (area.offset_bytes, self._aborts))

    def peek(self, index: int) -> int:
        """The first word of an index's slot, as whoever only looks sees it."""
        if not 0 <= index < self.indices:
            raise PerCpuError(f"peek: index is {index}; allowed are 0 to {self.indices - 1}")
        return self._lib.rl_peek(self._memory, index) if self._open else 0

    def close(self) -> None:
        """Give the memory back. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._destroy()

    def _destroy(self) -> None:
        self._lib.rl_percpu_destroy(self._memory)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_open", False):
            self.close()

    def _facts(self) -> dict[str, object]:
        return {
            "by": self.by,
            "indices": self.indices,
            "bytes_per_index": self.bytes_per_index,
            "mapped_bytes": self.mapped_bytes,
            "aborts": ", ".join(f"{name} {count}" for name, count in self.aborts.items()),
        }

    def __repr__(self) -> str:
        if not self._open:
            return f"<{type(self).__name__}, closed>"
        return f"<{type(self).__name__} " + ", ".join(f"{k}={v}" for k, v in self._facts().items()) + ">"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th scope='row'>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in self._facts().items()
        )
        return (
            f"<table class='rl-table'><caption>{type(self).__name__}</caption><tbody>{rows}</tbody></table>"
        )


class Counter(PerCpu):
    """A counter that no two CPUs fight over. By ``node_id`` it is shared by a node's CPUs, with atomic instructions."""

    allowed = (*BY, "node_id")

    def _create(self, by: int) -> int:
        if self.by == "node_id":
            self.indices = host.possible_nodes()
        return super()._create(by)

    def add(self, count: int = 1) -> None:
        """Add to the calling thread's slot."""
        here = self._here()
        if self.by == "node_id":
            self._lib.rl_call_node_counter_add(self._memory, here, count)
        else:
            self._lib.rl_call_counter_add(self._memory, here, count)

    def values(self) -> list[int]:
        """Each index's part, not all read at the same moment."""
        return [self.peek(index) for index in range(self.indices)]

    @property
    def value(self) -> int:
        """The sum of all parts."""
        return sum(self.values())

    def _facts(self):
        return {"value": self.value} | super()._facts()


class Lock(PerCpu):
    """Mutual exclusion among the threads of one index, taken without an atomic instruction."""

    def try_acquire(self) -> int | None:
        """The index whose lock is the caller's now, or None where another thread holds it."""
        index = self._ffi.new("uint32_t *")
        answer = self._lib.rl_call_lock_try(self._memory, self._here(), index)
        return index[0] if answer == self._lib.RL_COMMITTED else None

    def acquire(self) -> int:
        """The index whose lock is the caller's now. Waits, giving its time away; the GIL is released."""
        index = self._ffi.new("uint32_t *")
        self._lib.rl_call_lock_take(self._memory, self._here(), index)
        return index[0]

    def release(self, index: int) -> None:
        """Give an index's lock back, from any thread and CPU. Raises PerCpuError where nobody holds it."""
        if not self.peek(index):
            raise PerCpuError(f"release({index}): nobody holds the lock of this index")
        self._lib.rl_call_lock_release(self._memory, index)

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold the lock of the index that the thread has now."""
        index = self.acquire()
        try:
            yield index
        finally:
            self.release(index)


class Node:
    """Something that can be listed: it has its place in memory for as long as it exists."""

    def __init__(self, value: object = None):
        self.value = value
        self._memory = native.core()[0].new("struct rl_node *")
        self._listed = False

    @property
    def address(self) -> int:
        return int(native.core()[0].cast("uintptr_t", self._memory))

    def __repr__(self) -> str:
        return f"<Node {self.value!r}{', listed' if self._listed else ''}>"


class List(PerCpu):
    """An intrusive last-in-first-out list. A ``takeable`` one costs one more load, and others may take it over."""

    def __init__(self, by: str = "cpu_id", takeable: bool = False):
        self.takeable = takeable
        self._nodes: dict[int, Node] = {}
        super().__init__(by)

    _slot_bytes = 32

    def _create(self, by: int) -> int:
        return super()._create(by) or (self._lib.rl_takeable_init(self._memory) if self.takeable else 0)

    def push(self, node: Node) -> None:
        """Put a node on the list of the calling thread's index. It must not be in a list already."""
        if not isinstance(node, Node) or node._listed:
            raise PerCpuError(f"push: {node!r} is not a Node that is in no list")
        here = self._here()
        node._listed = True
        self._nodes[node.address] = node
        push = self._lib.rl_call_takeable_push if self.takeable else self._lib.rl_call_list_push
        push(self._memory, here, node._memory)

    def pop(self) -> Node | None:
        """The node that was pushed last at the calling thread's index, or None where there is none."""
        pop = self._lib.rl_call_takeable_pop if self.takeable else self._lib.rl_call_list_pop
        return self._out(pop(self._memory, self._here()))

    def _out(self, found) -> Node | None:
        if found == self._ffi.NULL:
            return None
        node = self._nodes.pop(int(self._ffi.cast("uintptr_t", found)))
        node._listed = False
        return node

    def take_over(self, index: int, how: str | None = None) -> list[Node]:
        """Every node of an index's list, which is empty afterwards; whoever uses it meanwhile is not disturbed.

        ``how``: ``fence-cpu``, ``fence-all``, or ``move`` (no fence: go to that CPU and empty the list there).
        None tries them in this order and skips what this kernel or this index does not offer. Raises
        PerCpuError with each refusal.
        """
        if not self.takeable:
            raise PerCpuError("take_over: this list was not made with takeable=True")
        if not 0 <= index < self.indices:
            raise PerCpuError(f"take_over: index is {index}; allowed are 0 to {self.indices - 1}")
        if how is not None and how not in WAYS_TO_TAKE:
            raise PerCpuError(f"take_over: how is {how!r}; allowed are {', '.join(WAYS_TO_TAKE)}")
        fence_refusal()  # asking makes the process known to the kernel
        here, chain, refusals = self._here(), self._ffi.new("struct rl_node **"), []
        for name in [how] if how else WAYS_TO_TAKE:
            way = getattr(self._lib, WAYS_TO_TAKE[name])
            answer = -self._lib.rl_takeable_take(self._memory, here, index, way, chain)
            if not answer:
                return list(self._taken(chain[0]))
            refusals.append(f"{name} answered {errno.errorcode.get(answer, answer)}")
        raise PerCpuError(f"take_over({index}) by {self.by}: {'; '.join(refusals)}")

    def _taken(self, chain) -> Iterator[Node]:
        while chain != self._ffi.NULL:
            following = chain.next
            yield self._out(chain)
            chain = following

    def __len__(self) -> int:
        return len(self._nodes)

    def _facts(self):
        return {"length": len(self), "takeable": self.takeable} | super()._facts()


WAYS_TO_TAKE = {
    "fence-cpu": "RL_TAKE_FENCE_CPU",
    "fence-all": "RL_TAKE_FENCE_ALL",
    "move": "RL_TAKE_MOVE",
}


class _Bounded(PerCpu):
    """What has a capacity, a power of two."""

    _creator = ""

    def __init__(self, capacity: int, by: str = "cpu_id"):
        self.capacity = capacity
        super().__init__(by)

    def _asked(self) -> str:
        return f"a capacity of {self.capacity} must be a power of two, of {self._least} and more"

    _least = 2

    def _create(self, by: int) -> int:
        if not isinstance(self.capacity, int) or not 0 < self.capacity < 1 << 31:
            return -errno.EINVAL
        return getattr(self._lib, self._creator)(self._memory, self.capacity, self.indices, by)

    def _facts(self):
        return {"capacity": self.capacity} | super()._facts()


class Ring(_Bounded):
    """A bounded first-in-first-out ring of pointer-sized numbers."""

    _creator = "rl_ring_create"

    def push(self, value: int) -> bool:
        """Put a number in at the calling thread's index; False where the ring is full."""
        return self._lib.rl_call_ring_push(self._memory, self._here(), value) == self._lib.RL_COMMITTED

    def pop(self) -> int | None:
        """The oldest number of the calling thread's index, or None where the ring is empty."""
        value = self._ffi.new("intptr_t *")
        answer = self._lib.rl_call_ring_pop(self._memory, self._here(), value)
        return value[0] if answer == self._lib.RL_COMMITTED else None


class ByteRing(_Bounded):
    """A tracer's buffer of ``capacity`` bytes: records are copied in and out whole, oldest first."""

    _creator = "rl_bytes_create"
    _least = 64

    @property
    def largest_record_bytes(self) -> int:
        """Payload of the largest record: with its header it fills half of the ring."""
        return self.capacity // 2 - 8

    def write(self, payload: bytes) -> bool:
        """Copy a record in at the calling thread's index; False where there is no room now."""
        if len(payload) > self.largest_record_bytes:
            raise PerCpuError(
                f"write: {len(payload)} bytes; a record of this ring has at most {self.largest_record_bytes}"
            )
        record = self._record(len(payload))
        self._ffi.memmove(record.payload, payload, len(payload))
        return self._lib.rl_call_bytes_write(self._memory, self._here(), record) == self._lib.RL_COMMITTED

    def read(self) -> bytes | None:
        """The oldest record of the calling thread's index, or None where there is none."""
        room = self.capacity // 2
        record = self._record(room)
        answer = self._lib.rl_call_bytes_read(self._memory, self._here(), record, room)
        if answer != self._lib.RL_COMMITTED:
            return None
        return bytes(self._ffi.buffer(self._ffi.cast("char *", record.payload), record.payload_bytes))

    def _record(self, payload_bytes: int):
        rounded = (payload_bytes + 7) // 8 * 8
        return self._ffi.new("struct rl_record *", {"payload_bytes": payload_bytes, "payload": rounded})


class Block:
    """One object of a pool: a writable buffer until it is freed."""

    def __init__(self, pool: "Pool", pointer):
        self._pool, self._pointer = pool, pointer

    @property
    def memory(self):
        """The object's bytes. Raises PerCpuError once it is freed."""
        if self._pointer is None or not self._pool._open:
            raise PerCpuError("memory: the block was freed, or its pool closed")
        return self._pool._ffi.buffer(self._pointer, self._pool.object_bytes)

    @property
    def address(self) -> int:
        return int(self._pool._ffi.cast("uintptr_t", self._pointer)) if self._pointer is not None else 0


class Pool(PerCpu):
    """An allocator's cache: objects of one size, the free ones in takeable lists by index."""

    def __init__(self, object_bytes: int, objects: int, by: str = "cpu_id"):
        self.object_bytes, self.objects = object_bytes, objects
        super().__init__(by)

    def _asked(self) -> str:
        return f"{self.objects} objects of {self.object_bytes} bytes; a size is a multiple of 8, from 8"

    def _create(self, by: int) -> int:
        if min(self.object_bytes, self.objects) < 1:
            self._pool = None
            return -errno.EINVAL
        fence_refusal()  # asking makes the process known, so that another index's objects can be taken over
        self._pool = self._ffi.new("struct rl_pool *")
        answer = self._lib.rl_pool_create(self._pool, self.object_bytes, self.objects, self.indices, by)
        self._memory = self._ffi.addressof(self._pool, "lists")
        return answer

    def _destroy(self) -> None:
        self._lib.rl_pool_destroy(self._pool)

    @property
    def mapped_bytes(self) -> int:
        """Address space of the lists and of the objects."""
        return super().mapped_bytes + (self._pool.mapped_bytes if self._open else 0)

    def alloc(self) -> Block | None:
        """An object, or None where every one is in use. Its bytes are whatever they were."""
        pointer = self._lib.rl_call_pool_alloc(self._pool, self._here())
        return None if pointer == self._ffi.NULL else Block(self, pointer)

    def free(self, block: Block) -> None:
        """Give an object back, from any thread. Raises PerCpuError for one that is not this pool's, or freed."""
        if not isinstance(block, Block) or block._pool is not self or block._pointer is None:
            raise PerCpuError(f"free: {block!r} is not an allocated block of this pool")
        here = self._here()
        pointer, block._pointer = block._pointer, None
        self._lib.rl_call_pool_free(self._pool, here, pointer)
