"""The files below what the user named: each once, no link followed, no kernel's own filesystem entered."""

import os
from collections.abc import Iterable, Iterator

PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)
"""Filesystems whose files are answers of the kernel: some never end, some act when they are read."""


def _pseudo_devices() -> dict[int, str]:
    found = {}
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            for line in mounts:
                words = line.split()
                kind = words[words.index(b"-") + 1].decode("ascii", "replace")
                if kind in PSEUDO:
                    major, minor = map(int, words[2].split(b":"))
                    found[os.makedev(major, minor)] = kind
    except OSError:
        pass  # no /proc: then there is nothing of it to enter
    return found


def files(paths: Iterable[str], refuse) -> Iterator[tuple[str, bool]]:
    """(path, whether the user named it). ``refuse(path, reason)`` for what cannot be walked."""
    pseudo, seen = _pseudo_devices(), set()
    for start in paths:
        if not os.path.isdir(start):  # also what is not there: whoever reads it says so
            if start not in seen:
                seen.add(start)
                yield start, True
            continue
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)
                kind = pseudo.get(status.st_dev)
                if kind:
                    refuse(folder, f"a filesystem of the kernel's own ({kind}) is not entered")
                    continue
                if (status.st_dev, status.st_ino) in seen:  # named twice, or mounted into itself
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_symlink():
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif entry.path not in seen:
                            yield entry.path, False
            except OSError as error:
                refuse(folder, f"{os.strerror(error.errno)}")
