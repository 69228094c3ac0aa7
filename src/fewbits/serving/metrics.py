"""What the server has done so far, as Prometheus reads it.

Source: Prometheus, exposition formats, text format 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewbits.serving.completion import Completion
    from fewbits.serving.scheduler import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_HELP: Mapping[str, tuple[str, str]] = {
    "requests_total": ("counter", "Requests by path and status of the answer."),
    "answers_total": ("counter", "Answers by how they ended."),
    "prompt_tokens_total": ("counter", "Tokens of prompts, cached ones among them."),
    "cached_prompt_tokens_total": ("counter", "Tokens of prompts that hadn't to be computed again."),
    "written_tokens_total": ("counter", "Tokens of answers."),
    "steps_total": ("counter", "Steps of the engine."),
    "step_tokens_total": ("counter", "Tokens that went through the engine, of prompts and answers."),
    "first_token_seconds": ("histogram", "From a request's acceptance to an answer's first token."),
    "answer_seconds": ("histogram", "From a request's acceptance to an answer's end."),
    "answers_running": ("gauge", "Answers in slots."),
    "answers_waiting": ("gauge", "Answers that wait for a slot."),
    "slots": ("gauge", "Answers that are written at a time at most."),
}


class _Histogram:
    """Counts by upper bounds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Counts and times; may be told and asked by several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: Counter[str] = Counter(
            {name: 0 for name, (kind, _) in _HELP.items() if kind == "counter" and "_tokens_" in name}
        )
        self._counts["steps_total"] = 0
        self._histograms = {name: _Histogram() for name, (kind, _) in _HELP.items() if kind == "histogram"}

    def answered(self, path: str, status: int) -> None:
        """A request to a route has its answer's status."""
        with self._lock:
            self._counts[f'requests_total{{path="{path}",status="{status}"}}'] += 1

    def stepped(self, tokens: int) -> None:
        """The engine has taken a step of so many tokens."""
        with self._lock:
            self._counts["steps_total"] += 1
            self._counts["step_tokens_total"] += tokens

    def began(self, seconds: float) -> None:
        """An answer has its first token."""
        with self._lock:
            self._histograms["first_token_seconds"].observe(seconds)

    def ended(self, completion: Completion, reason: str, seconds: float) -> None:
        """An answer has left its slot."""
        with self._lock:
            self._counts[f'answers_total{{reason="{reason}"}}'] += 1
            self._counts["prompt_tokens_total"] += len(completion.prompt)
            self._counts["cached_prompt_tokens_total"] += completion.cached
            self._counts["written_tokens_total"] += completion.written
            self._histograms["answer_seconds"].observe(seconds)

    def text(self, load: Load) -> str:
        """All of it, with how busy the scheduler is at the moment."""
        gauges = {"answers_running": load.running, "answers_waiting": load.waiting, "slots": load.slots}
        lines: list[str] = []
        with self._lock:
            for name, (kind, explanation) in _HELP.items():
                full = f"fewbits_{name}"
                lines += [f"# HELP {full} {explanation}", f"# TYPE {full} {kind}"]
                if kind == "histogram":
                    lines += self._histograms[name].lines(full)
                elif kind == "gauge":
                    lines.append(f"{full} {gauges[name]}")
                else:
                    counts = sorted(self._counts.items())
                    lines += [f"fewbits_{key} {count}" for key, count in counts if key.split("{")[0] == name]
        return "\n".join(lines) + "\n"
