"""Generation against transformers' own, and what the prompt becomes."""

import pytest
import torch

from evaluation_models import make_model
from fewbits.errors import EvaluationError, FewbitsError
from fewbits.generation import _prompt_tokens, _TextStream, generate
from fewbits.language_model.text_tokenizer import HuggingFaceTokenizer, render_chat_template

PROMPT = "the cat sees"


def test_greedy_is_what_transformers_writes(original):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(original)
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    prompt = tokenizer.encode(PROMPT, return_tensors="pt", add_special_tokens=False)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 1}
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    result = generate(original, PROMPT, n=20, threads=1)

    assert result.text == tokenizer.decode(ids[0], skip_special_tokens=True)[len(PROMPT) :]
    assert 0 < result.tokens <= 20
    assert result.prompt_tokens == prompt.shape[1]
    assert result.tokens_per_second > 0


def test_sampling_follows_the_seed(original):
    texts = [generate(original, PROMPT, n=12, temperature=1.0, seed=seed).text for seed in (3, 3, 4)]

    assert texts[0] == texts[1] != texts[2]


def test_it_ends_where_the_model_ends(original, tmp_path):
    """A model whose head knows only the end."""
    HuggingFaceTokenizer(original)._tokenizer.save_pretrained(tmp_path)
    model = make_model(300)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(64, model.config.vocab_size, bias=False)
    model.save_pretrained(tmp_path)
    # All logits are equal, and the most likely token is the first: the beginning-of-text token.
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')

    result = generate(tmp_path, PROMPT, n=5)

    assert (result.tokens, result.text, result.stopped) == (0, "", "end")


def test_it_stops_when_the_context_is_full(original):
    result = generate(original, "cat " * 60, n=500, temperature=1.0)

    assert result.prompt_tokens + result.tokens <= 128
    assert result.stopped in ("context", "end")


def test_pieces_join_to_the_text(original):
    pieces = []

    result = generate(original, PROMPT, n=40, temperature=2.0, seed=1, on_text=pieces.append)

    assert "".join(pieces) == result.text
    assert len(pieces) > 1


def test_characters_are_given_whole(original):
    """日 is three tokens of the byte-level alphabet."""
    tokenizer = HuggingFaceTokenizer(original)
    ids = [i for byte in "æĹ¥" for i in (tokenizer._tokenizer.convert_tokens_to_ids(byte),)]
    pieces = []
    stream = _TextStream(tokenizer, tokenizer.encode("the", markup=False), pieces.append)

    for token in ids:
        stream.add(token)

    assert pieces == ["日"]
    assert stream.finish() == "日"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "found 0 tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"runtime": "vllm"}, "auto, engine, transformers"),
        ({"runtime": "engine"}, "the engine can't run this as asked: found safetensors"),
        ({"stop": ["cat"]}, "stop strings and speculation need the engine"),
        ({"threads": 0}, "1 or more"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "cat " * 500}, "prompt is too long"),
    ],
)
def test_refused(original, options, message):
    with pytest.raises(FewbitsError, match=message):
        generate(original, **({"prompt": PROMPT} | options))


def test_chat_uses_the_template(original):
    tokenizer = HuggingFaceTokenizer(original)

    chat = _prompt_tokens(tokenizer, PROMPT, chat=True)

    assert chat == tokenizer.encode(f"[user] {PROMPT} [answer]", markup=True)
    assert _prompt_tokens(tokenizer, PROMPT, chat=False) == tokenizer.encode(PROMPT, markup=True)


def test_special_tokens_count_in_prompts_and_not_in_texts(original):
    tokenizer = HuggingFaceTokenizer(original)

    assert tokenizer.encode("</s>", markup=True) == [1]
    assert 1 not in tokenizer.encode("</s>", markup=False)
    assert tokenizer.eos_ids == {1}


def test_a_model_without_template_can_not_chat(original, tmp_path):
    tokenizer = HuggingFaceTokenizer(original)._tokenizer
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)

    with pytest.raises(EvaluationError, match="no chat template"):
        HuggingFaceTokenizer(tmp_path).chat_prompt("hello")


def test_templates_of_gguf_files():
    template = (
        "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    text = render_chat_template(template, "a < b", bos_token="<s>", eos_token="</s>")

    assert text == "<s><user>a < b</s>\n<assistant>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set x = messages.append(1) %}",
        "{{ raise_exception('no system role') }}",
        "{% for %}",
        "{{ 1 + 'a' }}",
    ],
)
def test_templates_that_fail_or_reach_out_are_refused(template):
    with pytest.raises(EvaluationError, match="chat template can't be filled in"):
        render_chat_template(template, "hello")
