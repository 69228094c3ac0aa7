"""fewbits chat, as a process: at a terminal and in a pipe, with Ctrl-C at every point."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fewbits.engine.text_stream import TextStream
from serving_model import ServedModel

# Greedy answers of this model go round in circles: without Ctrl-C they would take minutes.
ENDLESS = ("--temperature", "0", "-n", "90000", "--context", "100000", "--threads", "1")


def command(served: ServedModel, *options: str) -> list[str]:
    return [sys.executable, "-m", "fewbits", "chat", str(served.path), *options]


def heed_ctrl_c() -> None:
    """Undo what a process inherits from a shell that runs its tests in the background: Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A process at a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            heed_ctrl_c()
            os.execve(arguments[0], arguments, {**os.environ, "TERM": "dumb"})
        self._seen = ""

    def expect(self, words: str, seconds: float = 120) -> str:
        """Wait for words; all that came before them, and they."""
        end = time.monotonic() + seconds
        while words not in self._seen:
            assert time.monotonic() < end, f"no {words!r} in {self._seen[-500:]!r}"
            if select.select([self._file], [], [], 0.1)[0]:
                self._seen += self._read()
        at = self._seen.index(words) + len(words)
        found, self._seen = self._seen[:at], self._seen[at:]
        return found

    def expect_prompt(self) -> None:
        """Wait for the prompt, and until a Ctrl-C is heeded: between both, Python keeps it until a key is pressed."""
        self.expect("> ")
        time.sleep(0.5)

    def wait_for_text(self, least: int, seconds: float = 120) -> None:
        """Wait until so many characters have come."""
        end = time.monotonic() + seconds
        while len(self._seen) < least:
            assert time.monotonic() < end, f"only {self._seen!r}"
            if select.select([self._file], [], [], 0.1)[0]:
                self._seen += self._read()

    def send(self, text: str) -> None:
        os.write(self._file, text.encode())

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Status, and what was still said."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if select.select([self._file], [], [], 0.05)[0]:
                self._seen += self._read()
            if done:
                return os.waitstatus_to_exitcode(status), self._seen
        raise AssertionError(f"it doesn't end: {self._seen[-500:]!r}")

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._file)

    def _read(self) -> str:
        try:
            return os.read(self._file, 65536).decode("utf-8", "replace")
        except OSError:  # the other side is closed
            return ""


@contextmanager
def terminal(served: ServedModel, *options: str) -> Iterator[Terminal]:
    made = Terminal(command(served, *options))
    try:
        yield made
    finally:
        made.kill()


CTRL_C = "\x03"


def test_ctrl_c_cuts_an_answer_and_the_conversation_goes_on(served: ServedModel) -> None:
    with terminal(served, *ENDLESS) as chat:
        assert "Ctrl-C stops an answer" in chat.expect("> ")
        for message in ("The quick brown fox", "and then?"):
            chat.send(f"{message}\n")
            chat.expect(message)  # the terminal's echo
            assert len(chat.expect("\n")) < 10
            chat.wait_for_text(200)  # in the middle of the answer
            chat.send(CTRL_C)
            assert len(chat.expect(" [stopped]")) > 200
            chat.expect_prompt()
        chat.send("/quit\n")
        status, _ = chat.end()

    assert status == 0


def test_ctrl_c_twice_ends(served: ServedModel) -> None:
    with terminal(served, *ENDLESS) as chat:
        chat.expect_prompt()
        chat.send("The quick brown fox\n")
        chat.expect("fox\r\n")
        chat.wait_for_text(200)
        chat.send(CTRL_C)
        chat.expect("[stopped]")
        chat.expect_prompt()
        chat.send(CTRL_C)
        status, said = chat.end()

    assert status == 0
    assert "Traceback" not in said


def test_at_the_prompt_ctrl_c_drops_what_was_typed_and_only_the_next_one_ends(served: ServedModel) -> None:
    with terminal(served, *ENDLESS, "-n", "3") as chat:
        chat.expect_prompt()
        chat.send("half a mess")
        chat.expect("half a mess")
        chat.send(CTRL_C)
        chat.expect("Ctrl-C again ends")
        chat.expect_prompt()
        chat.send("/reset\n")  # a line in between: the count begins again
        chat.expect_prompt()
        chat.send(CTRL_C)
        chat.expect("Ctrl-C again ends")
        chat.expect_prompt()
        chat.send(CTRL_C)
        status, said = chat.end()

    assert status == 0
    assert "half" not in said


def test_in_a_pipe_ctrl_c_cuts_the_answer_and_the_next_line_is_answered(served: ServedModel) -> None:
    with subprocess.Popen(
        command(served, *ENDLESS),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        try:
            for _ in range(2):
                chat.stdin.write(b"The quick brown fox\n")
                chat.stdin.flush()
                assert chat.stdout.read(1)
                time.sleep(0.3)
                chat.send_signal(signal.SIGINT)
                told = b""
                while not told.endswith(b" [stopped]"):
                    byte = chat.stderr.read(1)
                    assert byte, told
                    told += byte
            rest, said = chat.communicate(timeout=60)
        finally:
            chat.kill()

    assert chat.returncode == 0
    assert len(rest) > 100
    assert said == b""


def test_in_a_pipe_ctrl_c_between_answers_ends_with_130(served: ServedModel) -> None:
    with subprocess.Popen(
        command(served, "-n", "2"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_ctrl_c,
    ) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        try:
            chat.stdin.write(b"The\n")
            chat.stdin.flush()
            chat.stdout.readline()
            time.sleep(0.3)
            chat.send_signal(signal.SIGINT)
            status = chat.wait(60)
            said = chat.stderr.read()
        finally:
            chat.kill()

    assert status == 130
    assert said == b"fewbits: interrupted\n"


def test_a_conversation_in_a_pipe_is_the_same_as_its_prompts_one_by_one(served: ServedModel) -> None:
    """The second answer follows the first one, and /reset forgets both."""
    lines = "The quick\nand?\n/reset\nThe quick\n/what\n"
    done = subprocess.run(
        command(served, "--temperature", "0", "-n", "6", "--system", "Be"),
        input=lines, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0
    expected = []
    prompt = "<system>Be\n<user>The quick\n<assistant>"
    for _ in range(2):
        ids = served.greedy(served.tokenizer.encode(prompt), 6)
        stream = TextStream(served.tokenizer.token_bytes)
        text = "".join(map(stream.add, ids)) + stream.finish()
        expected.append(text)
        prompt += f"{text}\n<user>and?\n<assistant>"
    assert done.stdout == "".join(f"{text}\n" for text in [*expected, expected[0]])
    assert "no such command" in done.stderr


def test_a_message_that_does_not_fit_is_refused_and_the_conversation_goes_on(served: ServedModel) -> None:
    done = subprocess.run(
        command(served, "--context", "40", "-n", "3", "--temperature", "0"),
        input=f"{'quick ' * 60}\nThe\n", capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0
    assert re.search(r"the prompt is too long: found [0-9]+ tokens", done.stderr)
    assert done.stdout.count("\n") == 1
