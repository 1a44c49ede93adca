"""The ranks that tests run on: one call leaves nothing for the next, and a rank that fails takes its world with it."""

from __future__ import annotations

import os
import time

import pytest
import torch

from tests import ranks
from tests.ranks import RankError, on_ranks


def untidy() -> tuple[int, list]:
    """This process, and what it started from; changes all of that."""
    found = [torch.rand(()).item(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd(),
             os.environ.get("LEFT_BEHIND"), os.environ["RANK"], torch.nn.functional.linear is None]  # fmt: skip
    torch.nn.functional.linear = None
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    os.environ.update(LEFT_BEHIND="yes", RANK="7")
    os.chdir("/")
    return os.getpid(), found


def test_a_call_finds_the_process_of_the_last_one_as_new():
    (first,), (second,) = on_ranks(untidy, 1), on_ranks(untidy, 1)
    assert first == second and first[0] != os.getpid() and first[1][1:4] == [torch.float32, 1, True]


def fails(how: str) -> None:
    """On the last rank, while the others wait for it in a collective."""
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        if how == "raises":
            raise ValueError("of the last rank")
        if how == "ends":
            os._exit(3)
        time.sleep(60)
    torch.distributed.barrier()


@pytest.mark.parametrize("how, world_size, message", [
    ("raises", 2, "rank 1:(.|\\n)*ValueError: of the last rank"), ("ends", 1, "rank 0 ended with code 3"),
    ("hangs", 1, r"no answer in 1 s from ranks \[0\]"),
], ids=["raises", "ends", "hangs"])  # fmt: skip
def test_a_rank_that_fails_takes_its_world_with_it(how, world_size, message, monkeypatch):
    monkeypatch.setattr(ranks, "WORLDS", {})  # the session's stay
    assert on_ranks(abs, world_size, -1) == [1] * world_size
    processes = ranks.WORLDS[world_size].processes
    monkeypatch.setattr(ranks, "TIMEOUT_SECONDS", 1.0 if how == "hangs" else 60.0)
    with pytest.raises(RankError, match=message):
        on_ranks(fails, world_size, how)
    assert not ranks.WORLDS and not any(process.is_alive() for process in processes)
