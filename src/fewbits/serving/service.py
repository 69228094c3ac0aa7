"""What a request becomes: checked, tokenized, queued."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.engine.sampling import Sampling
from fewbits.engine.text_stream import TextStream
from fewbits.errors import RequestError
from fewbits.serving.answer_form import AnswerForm, answer_form
from fewbits.serving.completion import Completion, Piece, TokenLogprob
from fewbits.serving.delivery import deliver
from fewbits.serving.events import Mailbox, RunningRequest
from fewbits.serving.grammar import Grammars
from fewbits.serving.prompts import PromptReader
from fewbits.serving.requests import ChatRequest, Parameters, TextRequest
from fewbits.serving.responses import Answer, ChatAnswer, TextAnswer
from fewbits.serving.scheduler import Scheduler
from fewbits.serving.token_choice import LogitChanges


@dataclass(frozen=True)
class Service:
    """One model, ready to answer.

    Attributes:
        model: its name in requests.
        context: tokens of prompt and answer together, at most.
        vocabulary: V.
    """

    model: str
    tokenizer: GgufTokenizer
    prompts: PromptReader
    grammars: Grammars
    scheduler: Scheduler
    context: int
    vocabulary: int

    async def chat(self, request: Request, wanted: ChatRequest) -> Response:
        """Answer a conversation."""
        parameters = wanted.parameters
        self._check(parameters, 1)
        form = await asyncio.to_thread(answer_form, parameters, wanted.tools, self.grammars, self.prompts)
        variables: Mapping[str, Any] = wanted.template_variables
        if wanted.tools is not None:
            variables = {**variables, "tools": [tool.definition for tool in wanted.tools.listed]}
        prompt = await asyncio.to_thread(self.prompts.conversation, wanted.messages, variables)
        answer = ChatAnswer(self.model, self.tokenizer.token_bytes)
        return await self._answer(request, answer, [prompt], "messages", parameters, form)

    async def text(self, request: Request, wanted: TextRequest) -> Response:
        """Continue texts."""
        parameters = wanted.parameters
        self._check(parameters, len(wanted.prompts))
        form = await asyncio.to_thread(answer_form, parameters, None, self.grammars, self.prompts)
        prompts = [await asyncio.to_thread(self.prompts.prompt, prompt) for prompt in wanted.prompts]
        answer = TextAnswer(self.model, self.tokenizer.token_bytes)
        return await self._answer(request, answer, prompts, "prompt", parameters, form, echo=wanted.echo)

    def _check(self, parameters: Parameters, prompts: int) -> None:
        """Refuse what can be refused before any work: another model, tokens that there aren't, or no room."""
        if parameters.model != self.model:
            raise RequestError(
                "there is no such model",
                found=parameters.model[:80],
                allowed=self.model,
                status=404,
                code="model_not_found",
                param="model",
            )
        outside = [token for token in parameters.adjustments.bias if token >= self.vocabulary]
        if outside:
            raise RequestError(
                "logit_bias has a token id that the model doesn't have",
                found=outside[0],
                allowed=f"0 to {self.vocabulary - 1}",
                param="logit_bias",
            )
        most = self.scheduler.capacity
        if prompts > most:
            raise RequestError("too many prompts", found=prompts, allowed=f"{most} or fewer", param="prompt")
        choices = prompts * parameters.choices
        if choices > most:
            raise RequestError("too many choices", found=choices, allowed=f"{most} or fewer", param="n")
        self.scheduler.check_room(choices)

    async def _answer(
        self,
        request: Request,
        answer: Answer,
        prompts: Sequence[list[int]],
        param: str,
        parameters: Parameters,
        form: AnswerForm,
        *,
        echo: bool = False,
    ) -> Response:
        running = RunningRequest(self.scheduler, self._mailbox, parameters.choices, stream=parameters.stream)
        token_bytes = form.token_bytes(self.tokenizer)
        completions: list[Completion] = []
        for prompt in prompts:
            room = self._room(prompt, param)
            for choice in range(parameters.choices):
                completion = Completion(
                    prompt=prompt,
                    limit=room if parameters.max_tokens is None else min(parameters.max_tokens, room),
                    sampler=_sampling(parameters.sampling, choice).sampler(),
                    text=TextStream(token_bytes, parameters.stop),
                    end_ids=self.tokenizer.eos_ids,
                    on_event=running.receiver(len(completions)),
                    changes=self._changes(parameters, form),
                    top_logprobs=parameters.top_logprobs,
                    recent=_recent(parameters.sampling),
                    tells_prompt=echo and parameters.top_logprobs is not None,
                )
                if echo:
                    completion.on_event(self._echo(completion))
                completions.append(completion)
        running.start(completions)
        return await deliver(request, answer, running, parameters, [form.reader() for _ in completions])

    @cached_property
    def _mailbox(self) -> Mailbox:
        return Mailbox()

    def _echo(self, completion: Completion) -> Piece:
        """A prompt as the beginning of its answer."""
        text = b"".join(map(self.tokenizer.token_bytes, completion.prompt)).decode("utf-8", "replace")
        first = (TokenLogprob(completion.prompt[0], None, ()),) if completion.tells_prompt else ()
        return Piece(text, first)

    def _changes(self, parameters: Parameters, form: AnswerForm) -> LogitChanges | None:
        """A new answer's changes to logits, if there are any."""
        constraint = form.constraint()
        if constraint is None and not parameters.adjustments:
            return None
        return LogitChanges(parameters.adjustments, constraint, self.vocabulary)

    def _room(self, prompt: Sequence[int], param: str) -> int:
        """Tokens that an answer may have."""
        room = self.context - len(prompt)
        if room < 1:
            raise RequestError(
                "the prompt is longer than the context",
                found=f"{len(prompt)} tokens",
                allowed=f"{self.context - 1} or fewer, so that there is room for an answer",
                code="context_length_exceeded",
                param=param,
            )
        return room


def _sampling(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one of several choices, which must not all be the same."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % (1 << 64))


def _recent(sampling: Sampling) -> int:
    """How many of the last tokens the sampler looks at."""
    return 0 if sampling.repetition_penalty == 1 else sampling.repetition_window
