"""A slow, lossy cable: ``python slow_wire.py NEAR FAR DELAY_S LOSS`` makes two taps and carries frames between them.

For kernels without netem. Says "ready" when both are there; ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_TAP, _NO_INFO = 0x0002, 0x1000
_LONGEST_FRAME = 1 << 16


def _tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_INFO))
    return descriptor


def main(near: str, far: str, delay_s: float, loss: float) -> None:
    """Carry frames, each ``delay_s`` after it came, and lose this part of them."""
    taps = [_tap(near), _tap(far)]
    other = dict(zip(taps, reversed(taps), strict=True))
    chance = random.Random(0)
    waiting: list[tuple[float, int, int, bytes]] = []  # (due, number, to, frame)
    number = 0
    print("ready", flush=True)
    while True:
        patience = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        ready, _, _ = select.select([0, *taps], [], [], patience)
        if 0 in ready and not os.read(0, 1):
            return
        now = time.monotonic()
        for tap in taps:
            if tap not in ready:
                continue
            try:
                frame = os.read(tap, _LONGEST_FRAME)
            except OSError:
                continue  # not up yet
            if chance.random() >= loss:
                number += 1
                heapq.heappush(waiting, (now + delay_s, number, other[tap], frame))
        while waiting and waiting[0][0] <= now:
            _, _, to, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # lost, as a full cable loses frames
                os.write(to, frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
