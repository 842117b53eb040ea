"""Processes that join late, end early or live again find no claims but those of now."""

import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from claiming import claims_of, kept_store, share_of

from distill import claims, gathering, sharing
from distill.runtime import Runtime
from distill.sharing import shared_out
from synthesis_kernels.errors import EchosetError


@pytest.fixture
def store(monkeypatch):
    yield from kept_store(monkeypatch)


def test_a_process_that_was_started_anew_holds_nothing_of_before(store):
    before = claims_of(store, 0)
    before.begin()
    before.take(0)
    own = claims_of(store, 1)
    assert own.take(0) is False
    claims_of(store, 0).begin()
    assert own.take(0)


def test_a_store_that_is_gone_is_an_error_with_its_remedy(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(EchosetError, match="torchrun's store is out of reach"):  # noqa: SIM117
        with shared_out(Runtime(quiet=True), [0, 1], "work") as share:
            raise dist.DistNetworkError("nobody listens")
    assert share.left == 2


def join_meanwhile(own):
    """Have a process join the others in a thread."""
    joining = threading.Thread(target=own.join, daemon=True)
    joining.start()
    return joining


def test_what_the_last_life_left_in_the_store_is_passed_over(store):
    before = claims_of(store, 0)
    before.join()
    before.begin()
    assert before.take(0)
    before.finish(0)
    before.write("over", before.name)
    before.close()  # and torchrun, which keeps its store, starts all anew
    own = claims_of(store, 1)
    joining = join_meanwhile(own)
    joining.join(timeout=0.5)
    assert joining.is_alive()
    leading = claims_of(store, 0)
    leading.join()
    joining.join(timeout=10)
    assert own.leader == leading.name and not own.read("over") and not own.begun()
    assert own.take(0) and not own.has_lost(own.leader)


def test_who_comes_after_the_others_have_ended_finds_that(store, monkeypatch):
    monkeypatch.setattr(claims, "LATE", 0.1)
    leading = claims_of(store, 0)
    leading.join()
    leading.write("over", leading.name)
    leading.close()
    own = claims_of(store, 1)
    own.join()
    assert own.read("over")


def test_the_same_work_is_shared_anew_each_time(store, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(sharing, "START", 0.01)
    for _ in range(2):
        with shared_out(Runtime(quiet=True), [0, 1], "work") as share:
            share.begin(lambda job: False, lambda job: False)
            assert list(share) == [0, 1] and not share.claims.read("over")
            share.claims.write("over", share.claims.name)


def test_nobody_waits_for_a_process_0_that_has_gone(store, monkeypatch):
    shares = [share_of(store, rank, [0]) for rank in range(2)]
    for share in shares:
        share.claims.join()
    shares[0].claims.close()
    monkeypatch.setattr(claims, "SILENCE", 0.2)
    with pytest.raises(EchosetError, match="process 0 has gone before the end"):
        shares[1].leader_first(list)
    with pytest.raises(EchosetError, match="process 0 has gone before the end"):
        gathering.gather(shares[1], Path(), bool, list)
