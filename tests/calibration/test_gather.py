"""Gathering goes on where it was killed, streams within its memory, and covers experts."""

import hashlib

import numpy as np
import pytest

from fewbits.calibration import gather as gather_module
from fewbits.calibration.gather import gather, statistics_for
from fewbits.calibration.store import StatisticsStore
from fewbits.calibration.text import CalibrationTokens, calibration_tokens
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import CalibrationError, OutputError, ResumeError
from fewbits.progress import Silent


@pytest.fixture(scope="module")
def few(tokens):
    return CalibrationTokens(tokens.blocks[:16], "few", "1" * 64, 0)


def digests(store):
    files = [*store.folder.glob("*.npz"), *store.folder.glob("*.folds.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Killed(Exception):
    pass


class KillAt(Silent):
    """Stops the run when so many blocks are done."""

    def __init__(self, blocks):
        self.left = blocks

    def advance(self, done, detail=""):
        del detail
        self.left -= done
        if self.left <= 0:
            raise Killed


@pytest.fixture(scope="module")
def whole(make_model, few, tmp_path_factory):
    store = StatisticsStore(tmp_path_factory.mktemp("whole"))
    gather(open_checkpoint(make_model("llama")), few, store, memory=None, progress=Silent())
    return store


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(make_model, few, whole, tmp_path, blocks):
    checkpoint = open_checkpoint(make_model("llama"))
    store = StatisticsStore(tmp_path / "store")
    with pytest.raises(Killed):
        gather(checkpoint, few, store, memory=None, progress=KillAt(blocks))
    assert not store.complete
    gather(checkpoint, few, store, memory=None, progress=Silent())
    assert store.complete
    assert digests(store) == digests(whole)
    assert not (store.folder / "state").exists()


def test_a_run_killed_inside_a_block_goes_on(make_model, few, whole, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(make_model("llama"))
    store = StatisticsStore(tmp_path / "store")
    save, count = StatisticsStore.save, iter(range(100))

    def save_nine(self, name, statistics):
        if next(count) == 9:
            raise Killed
        save(self, name, statistics)

    with monkeypatch.context() as patch:
        patch.setattr(StatisticsStore, "save", save_nine)
        with pytest.raises(Killed):
            gather(checkpoint, few, store, memory=None, progress=Silent())
    gather(checkpoint, few, store, memory=None, progress=Silent())
    assert digests(store) == digests(whole)


def test_little_memory_takes_more_passes_and_gives_the_same(make_model, few, whole, tmp_path):
    store = StatisticsStore(tmp_path / "store")
    gather(open_checkpoint(make_model("llama")), few, store, memory=1, progress=Silent())
    assert digests(store) == digests(whole)


def test_experts_are_covered_and_the_starved_are_listed(make_model, few, tmp_path):
    directory = make_model("qwen3_moe")
    store = StatisticsStore(tmp_path / "store")
    # 6 blocks of 2 tokens: most experts see fewer than K / 4
    short = CalibrationTokens(few.blocks[:6, :2].copy(), "short", "2" * 64, 0)
    gather(open_checkpoint(directory), short, store, memory=None, progress=Silent())
    experts = [name for name in store.names() if "#" in name]
    assert len(experts) == 3 * 2 * 4
    starved = store.starved()
    for name in experts:
        found = store.load(name)
        assert np.trace(found.second_moment) >= 0
        assert found.row_importance.mean() == pytest.approx(1, abs=1e-4)
        assert (name in starved) == (found.tokens * 4 < len(found.second_moment))
    layer = [store.load(f"model.layers.0.mlp.experts.down_proj#{e}").tokens for e in range(4)]
    assert sum(layer) == 2 * 5 * 2  # each of 5 training blocks' 2 tokens goes to 2 experts


def test_an_expert_without_tokens_leans_on_the_others():
    from fewbits.calibration.conversion import _blend
    from fewbits.calibration.statistics import Statistics

    class Memory(dict):
        load = dict.__getitem__
        save = dict.__setitem__

    def diagonal(value, tokens):
        moment = np.diag(np.full(8, value, np.float32))
        return Statistics(moment, np.ones(4, np.float32), moment, tokens)

    store = Memory({"e#0": diagonal(0.3, 300), "e#1": diagonal(0.1, 100), "e#2": diagonal(0.0, 0)})
    store["e#3"] = diagonal(0.004, 1)
    _blend(store, list(store))
    # the others' mean per routed token is 0.4 / 400, and one token is expected
    np.testing.assert_allclose(np.diag(store["e#2"].second_moment), 0.001, rtol=1e-5)
    # half of its own 0.004 per token and half of the others' 0.001, for two tokens
    np.testing.assert_allclose(np.diag(store["e#3"].second_moment), 0.005, rtol=1e-5)
    np.testing.assert_allclose(np.diag(store["e#0"].second_moment), 0.3)


def test_a_store_of_another_text_is_refused(make_model, few, whole):
    other = CalibrationTokens(few.blocks, "other", "3" * 64, 0)
    (whole.folder / "complete.json").rename(whole.folder / "moved.json")
    try:
        with pytest.raises(ResumeError, match="another calibration"):
            gather(open_checkpoint(make_model("llama")), other, whole, memory=None, progress=Silent())
    finally:
        (whole.folder / "moved.json").rename(whole.folder / "complete.json")


def test_too_small_a_disk_is_refused_before_anything_is_done(make_model, few, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(OutputError, match="disk is too small"):
        gather(
            open_checkpoint(make_model("llama")),
            few,
            StatisticsStore(tmp_path),
            memory=None,
            progress=Silent(),
        )


def test_missing_and_damaged_statistics_are_named(whole, tmp_path):
    with pytest.raises(CalibrationError, match=r"no statistics of model\.nothing"):
        whole.load("model.nothing")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ResumeError, match="damaged"):
        StatisticsStore(tmp_path).load("a")


def test_statistics_are_gathered_once(tiny_llama, sample_text, monkeypatch):
    checkpoint = open_checkpoint(tiny_llama)
    read = calibration_tokens(checkpoint, sample_text, 512, length=32)
    first = statistics_for(checkpoint, read, None, Silent())
    assert first.complete
    monkeypatch.setattr(gather_module, "build_skeleton", None)
    again = statistics_for(checkpoint, read, None, Silent())
    assert again.folder == first.folder


def test_gguf_gives_the_statistics_of_its_source(tiny_llama, sample_text, tmp_path):
    import fewbits

    path = tmp_path / "model.gguf"
    fewbits.quantize(tiny_llama, path, format="BF16")
    stores = []
    for checkpoint in (open_checkpoint(source) for source in (tiny_llama, path)):
        read = calibration_tokens(checkpoint, sample_text, 512, length=32)
        stores.append(statistics_for(checkpoint, read, None, Silent()))
    assert stores[0].folder != stores[1].folder
    assert stores[0].names() == stores[1].names()
    for name in stores[0].names():
        ours, theirs = (store.load(name) for store in stores)
        np.testing.assert_allclose(ours.second_moment, theirs.second_moment, rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(ours.row_importance, theirs.row_importance, rtol=1e-3)
        assert ours.tokens == theirs.tokens
