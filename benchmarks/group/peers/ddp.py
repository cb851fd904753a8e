"""PPO by hand on torch's DistributedDataParallel over gloo: what the framework itself costs.

Every rank has the whole batch from the beginning and takes its share of every minibatch; nothing is sent but the
gradients, and a line that says when to begin. That is less than the other peers do.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from ppo_settings import SETTINGS
from work import WORKS, batch, memory_mb, serve


class DDP:
    """See the module: the driver."""

    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[str]] = []
        self._folder = tempfile.TemporaryDirectory()

    def build(self, work: str, size: int, starts: int) -> dict[str, Any]:
        """Rank processes; each start imports all, so one is enough."""
        began = time.perf_counter()
        command = [sys.executable, __file__, work, os.path.join(self._folder.name, "store"), str(size)]
        pipe = subprocess.PIPE
        self._ranks = [
            subprocess.Popen([*command, str(rank)], stdin=pipe, stdout=pipe, text=True) for rank in range(size)
        ]
        num_parameters = self._ask()[0]["num_parameters"]
        started = time.perf_counter() - began
        self.round()
        memory = [memory_mb(rank.pid) for rank in self._ranks]
        return {"num_parameters": num_parameters, "starts": [started], "memory": memory}

    def round(self) -> dict[str, Any]:
        """One update."""
        began = time.perf_counter()
        answers = self._ask()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "slowest_s": max(answer["seconds"] for answer in answers)}

    def _ask(self) -> list[Any]:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        return [json.loads(rank.stdout.readline()) for rank in self._ranks if rank.stdout is not None]

    def close(self) -> None:
        """End the ranks."""
        for rank in self._ranks:
            if rank.stdin is not None:
                rank.stdin.close()
        for rank in self._ranks:
            rank.wait()
        self._folder.cleanup()


def rank_main(work_name: str, store: str, size: int, rank: int) -> None:
    """One rank: a line in, an update, a line out; the first line only says how large the networks are."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    work = WORKS[work_name]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pi, self.vf = mlp(work.actions), mlp(1)

        def forward(self, obs: Any) -> Any:
            return self.pi(obs), self.vf(obs).squeeze(-1)

    def mlp(last: int) -> Any:
        sizes = [work.obs, *work.hidden]
        layers: list[Any] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.Tanh()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], last))

    torch.manual_seed(0)
    net = Net()
    model = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=SETTINGS["lr"], eps=SETTINGS["adam_eps"], fused=True)
    columns = {name: torch.from_numpy(value) for name, value in batch(work).items()}
    share = work.minibatch // size
    rng = np.random.default_rng(0)

    def step(rows: Any) -> None:
        logits, values = model(columns["obs"][rows])
        logp = torch.log_softmax(logits, -1)
        new = logp.gather(1, columns["actions"][rows][:, None])[:, 0]
        ratio = torch.exp(new - columns["action_logp"][rows])
        advantages = columns["advantages"][rows]
        bound = SETTINGS["clip_param"]
        policy = torch.min(ratio * advantages, ratio.clamp(1 - bound, 1 + bound) * advantages)
        value = (values - columns["value_targets"][rows]).square()
        entropy = -(logp.exp() * logp).sum(-1)
        loss = (-policy + SETTINGS["value_coeff"] * value - SETTINGS["entropy_coeff"] * entropy).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), SETTINGS["max_grad_norm"])
        optimizer.step()

    for turn, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        for _ in range(work.epochs if turn else 0):
            order = torch.from_numpy(rng.permutation(work.batch))  # the same on every rank
            for first in range(0, work.batch, work.minibatch):
                step(order[first + rank * share : first + (rank + 1) * share])
        answer = {"seconds": time.perf_counter() - began, "num_parameters": sum(p.numel() for p in net.parameters())}
        print(json.dumps(answer), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rank_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        serve(DDP())
