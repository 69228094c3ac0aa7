"""Runs that die midway, and what they leave behind."""

from contextlib import contextmanager

import pytest

from fewbits.pipeline.journal import Journal


class Killed(Exception):
    pass


@contextmanager
def interrupted(monkeypatch, after):
    """The run inside dies when `after` tensors are finished, as a killed process would."""
    finish = Journal.finish

    def dying(self, name, checksums, **options):
        finish(self, name, checksums, **options)
        if len(self.finished) == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", dying)
        with pytest.raises(Killed):
            yield


def leftovers(folder):
    """Names of a run's temporary files in a folder."""
    return sorted(p.name for p in folder.iterdir() if "fewbits" in p.name)
