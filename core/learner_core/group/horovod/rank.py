"""One rank of a Horovod ring as far as no array is involved: joining and leaving. Imports no Horovod itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from learner_core.group.collectives import Collective
from learner_core.group.network import use_interface

__all__ = ["HorovodRank"]


class HorovodRank(Collective):
    """Base of what backends return as ``make_collective("horovod")``.

    A subclass's ``prepare`` imports Horovod's module for its framework and keeps it as ``self._hvd``.
    """

    name: ClassVar[str] = "horovod"
    interface_variable: ClassVar[str] = "HOROVOD_GLOO_IFACE"
    _hvd: Any = None
    #: What the environment said before: whoever started this process, not this ring, may still be asked for.
    _replaced: Mapping[str, str | None] = {}

    def init(self, *, rank: int, size: int, rendezvous: Mapping[str, str], timeout_s: float) -> None:
        self.prepare()
        orders = {name: value for name, value in rendezvous.items() if name != self.interface_variable}
        self._replaced = {name: os.environ.get(name) for name in orders}
        os.environ.update(orders)
        # A wrong one would end this process, without a word.
        use_interface(self.interface_variable, rendezvous.get(self.interface_variable, ""))
        # The default is 1 ms; 0 would spin on a core that the ranks may not have.
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.5")
        # What breaks the ring is said by the driver, once, with the rank that did.
        os.environ.setdefault("HOROVOD_LOG_LEVEL", "fatal")
        self._hvd.init()
        self.rank: int = rank
        self.size: int = size

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if self._hvd is not None and self._hvd.is_initialized():
            with contextlib.suppress(Exception):
                self._hvd.shutdown()
        replaced, self._replaced = self._replaced, {}
        for name, value in replaced.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
