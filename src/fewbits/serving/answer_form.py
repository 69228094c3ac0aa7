"""What an answer to a request may look like, and how its text is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewbits.checkpoint.gguf_tokenizer import GgufTokenizer
from fewbits.errors import RequestError
from fewbits.serving.call_markup import CallMarkup
from fewbits.serving.call_reader import AnswerReader, CallReader, TextReader
from fewbits.serving.grammar import Grammar, GrammarConstraint, Grammars
from fewbits.serving.prompts import PromptReader
from fewbits.serving.requests import Parameters
from fewbits.serving.tools import Tools


@dataclass(frozen=True)
class AnswerForm:
    """The form of a request's answers.

    Attributes:
        grammar: that they follow; None: any text.
        markup: of calls in them; None: there are no calls.
        names: tools that may be called.
    """

    grammar: Grammar | None = None
    markup: CallMarkup | None = None
    names: tuple[str, ...] = ()

    def constraint(self) -> GrammarConstraint | None:
        """For one more answer."""
        return None if self.grammar is None else self.grammar.constraint()

    def reader(self) -> AnswerReader:
        """For one more answer."""
        return TextReader() if self.markup is None else CallReader(self.markup, self.names)

    def token_bytes(self, tokenizer: GgufTokenizer) -> Callable[[int], bytes]:
        """What tokens add to an answer's text: also the control tokens of calls, by which these are found."""
        if self.markup is None:
            return tokenizer.token_bytes
        literals = self.markup.literals
        shown = {
            token: name.encode("utf-8", "replace")
            for name, token in tokenizer.control_tokens.items()
            if any(name in literal for literal in literals)
        }
        return lambda token: shown.get(token) or tokenizer.token_bytes(token)


def answer_form(
    parameters: Parameters, tools: Tools | None, grammars: Grammars, prompts: PromptReader
) -> AnswerForm:
    """The form that a request asks for.

    Raises:
        RequestError: the model can't call tools, or a schema can't be followed.
    """
    if tools is not None:
        markup = prompts.call_markup
        if markup is None:
            raise RequestError(
                "the model's chat template doesn't tell how it calls tools",
                allowed="models whose template writes a tool's name and its arguments in JSON",
                param="tools",
            )
        grammar = grammars.calls(markup, tools, parameters.schema)
        return AnswerForm(grammar, markup, tuple(tool.name for tool in tools.callable))
    if parameters.schema is not None:
        return AnswerForm(grammars.json(parameters.schema, "response_format"))
    return AnswerForm()
