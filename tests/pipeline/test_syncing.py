"""Bytes are forced to the disk beside the work; a disk that fails is reported."""

import threading

import pytest

from fewbits.errors import OutputError
from fewbits.pipeline import syncing
from fewbits.pipeline.journal import Journal
from fewbits.pipeline.syncing import BackgroundSync


def test_it_syncs_again_and_again_until_it_is_stopped():
    calls, thrice = [], threading.Event()

    def sync():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            thrice.set()

    background = BackgroundSync(sync, 0.001)
    background.start()
    assert thrice.wait(30)
    background.stop()
    count = len(calls)

    assert threading.current_thread() not in calls
    assert not calls[0].is_alive()
    assert len(calls) == count
    background.check()


def test_stopping_what_never_began_does_nothing():
    BackgroundSync(lambda: None, 1).stop()


def test_a_failure_ends_it_and_is_raised_where_one_asks():
    failed = threading.Event()

    def sync():
        failed.set()
        raise OSError(5, "Input/output error")

    background = BackgroundSync(sync, 0.001)
    background.start()
    assert failed.wait(30)
    background.stop()

    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            background.check()


def test_a_tensor_is_not_finished_once_the_disk_has_failed(tmp_path, monkeypatch):
    def check(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(syncing.BackgroundSync, "check", check)
    with Journal(tmp_path / "out.gguf", "run") as journal:
        with pytest.raises(OutputError, match=r"writing .* failed"):
            journal.finish("weight", [0])
        with pytest.raises(OutputError, match=r"writing .* failed"):
            journal.sync()

    assert not journal.finished
