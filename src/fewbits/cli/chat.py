"""fewbits chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewbits.cli.failure import reported
from fewbits.cli.sampling_options import Context, KvCache, MinP, RepetitionPenalty, Threads, TopK, TopP
from fewbits.errors import FewbitsError

if TYPE_CHECKING:
    from fewbits.engine.engine import KvCache as KvCacheName
    from fewbits.engine.model import Model
    from fewbits.engine.sampling import SamplingOptions

_COMMANDS = "/reset forgets the conversation, /quit or Ctrl-D ends; Ctrl-C stops an answer, and ends if pressed twice."


def chat(
    path: Annotated[str, typer.Argument(help="GGUF file.")],
    system: Annotated[
        str | None, typer.Option(help="Message of the system in front of the conversation.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Tokens of an answer at most.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.8,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling. Default: another one each time.")] = None,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Guess tokens by what the text said before. Same output.")
    ] = False,
    context: Context = None,
    kv_cache: KvCache = "f16",
    threads: Threads = None,
) -> None:
    """Talk with a model: a message per line, from the terminal or from a pipe.

    /reset forgets the conversation, /quit or the end of the input ends. Ctrl-C stops an answer, and ends the
    conversation if it comes again before the next message.
    """
    with reported():
        from fewbits.engine.model import load

        model = load(path, threads=threads, context=context, kv_cache=cast("KvCacheName", kv_cache))
        options: SamplingOptions = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
        }
        conversation = _Conversation(model, system, n, options, speculate)
        if sys.stdin.isatty():
            sys.stderr.write(f"{_COMMANDS}\n")
        for line in _lines(conversation):
            if line == "/quit":
                break
            if line == "/reset":
                conversation.reset()
            elif line.startswith("/"):
                sys.stderr.write(f"no such command. {_COMMANDS}\n")
            elif line:
                conversation.answer(line)


def _lines(conversation: _Conversation) -> Iterator[str]:
    """What is typed or piped, line by line, to its end, or to the second Ctrl-C in a row."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 - gives `input` its line editing
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            sys.stdout.write("\n")  # what was typed is dropped, as in a shell
            if conversation.interrupted:
                return
            conversation.interrupted = True
            sys.stderr.write("Ctrl-C again ends\n")
            continue
        except UnicodeDecodeError as error:
            raise FewbitsError(
                "the messages aren't UTF-8", found=str(error), action="Convert them"
            ) from error
        conversation.interrupted = False
        yield line.strip()


class _Conversation:
    """Messages so far. What of them lies in the engine's cache isn't computed again.

    Attributes:
        interrupted: whether there has been a Ctrl-C since the last message.
    """

    def __init__(
        self, model: Model, system: str | None, n: int, options: SamplingOptions, speculate: bool
    ) -> None:
        self._model, self._n, self._options, self._speculate = model, n, options, speculate
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = []
        self.interrupted = False
        model.chat_prompt(
            [*self._beginning, {"role": "user", "content": "?"}]
        )  # refused now rather than later

    def reset(self) -> None:
        self._messages.clear()

    def answer(self, message: str) -> None:
        """Write the model's answer to standard output; a message that can't be answered is dropped, with the reason."""
        said = [*self._messages, {"role": "user", "content": message}]
        try:
            ids = self._model.encode(self._model.chat_prompt([*self._beginning, *said]))
            answer = self._model.stream(ids, self._n, speculate=self._speculate, **self._options)
            try:
                for piece in answer:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                self.interrupted = True
                sys.stdout.flush()
                sys.stderr.write(" [stopped]")
        except FewbitsError as error:
            sys.stderr.write(f"fewbits: {error}\n")
            if self._messages:
                sys.stderr.write("/reset forgets the conversation\n")
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        if answer.generation.stopped == "context":
            sys.stderr.write(
                "the context is full: /reset forgets the conversation, --context makes it longer\n"
            )
        self._messages = [*said, {"role": "assistant", "content": answer.generation.text}]
