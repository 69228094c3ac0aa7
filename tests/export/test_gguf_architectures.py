"""Every architecture of the table, from transformers through GGUF to llama.cpp and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3ForConditionalGeneration

from fewbits.architectures import known_model_types, to_hugging_face
from fewbits.architectures.table import ARCHITECTURES
from fewbits.checkpoint.checkpoint import Checkpoint, LazyTensor
from fewbits.checkpoint.source import open_checkpoint
from fewbits.errors import ArchitectureError
from fewbits.export.exporter import ITSELF, WHOLE, OutputTensor
from fewbits.export.registry import get_exporter
from llama_cpp_oracle import LlamaCpp, log_softmax
from published_model import published_model
from tiny_models import TINY_MODELS, TinyModel, randomize, sample_tokens, save, transformers_logits

# Largest difference of a log-probability: float32 on both sides, but summed in another order.
F32_LIMIT = 1e-4
# The same where ggml reads gelu from a table: some of its arguments are rounded to the other neighbour.
TABLE_LIMIT = 3e-3
# llama.cpp multiplies Q8_0 weights with activations that it rounds to 8 bits. The error as a share of the
# log-probabilities' spread; a tensor in the wrong order gives about 1.
Q8_0_LIMIT = 0.1

torch.set_num_threads(1)


@dataclass(frozen=True)
class Exported:
    """A tiny model, its directory, and the F32 GGUF file made of it."""

    tiny: TinyModel
    model: Any
    directory: Path
    file: Path


def write_gguf(checkpoint: Checkpoint, path: Path, quantized: bool = False) -> None:
    """The shortest pipeline there can be: F32, or Q8_0 where llama.cpp allows it."""
    exporter = get_exporter("gguf")
    tensors = exporter.tensors(checkpoint)
    formats = {t.name: "Q8_0" if quantized and t.quantizable else "F32" for t in tensors}
    layout = exporter.layout(tensors, formats, exporter.metadata(checkpoint))
    with path.open("wb") as file:
        file.truncate(layout.size)
        file.write(layout.files[ITSELF].header)
        for tensor in tensors:
            region = layout.parts[tensor.name][WHOLE]
            file.seek(region.offset)
            data = _encoded(tensor, formats[tensor.name])
            assert len(data) == region.nbytes
            file.write(data)
    assert exporter.read_back(path) == layout


def _encoded(tensor: OutputTensor, name: str) -> bytes:
    return gguf.quants.quantize(tensor.source.read(), gguf.GGMLQuantizationType[name]).tobytes()


def model_of(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> Any:
    """transformers' model with exactly these parameters."""
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager")
    made.float().eval().load_state_dict({name: torch.from_numpy(t.read()) for name, t in tensors.items()})
    return made


class TableGelu(torch.nn.Module):
    """Gelu as ggml computes it on a CPU: from a table of its values at every half-precision number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, value))


def llama_cpp_reference(model: Any, tokens: list[int]) -> np.ndarray:
    """transformers' log-probabilities, with ggml's gelu where the model has gelu."""
    mlps = [layer.mlp for layer in model.model.layers if hasattr(layer, "mlp")]
    kept = {mlp: mlp.act_fn for mlp in mlps if "GELU" in type(getattr(mlp, "act_fn", None)).__name__.upper()}
    try:
        for mlp in kept:
            mlp.act_fn = TableGelu()
        return log_softmax(transformers_logits(model, tokens))
    finally:
        for mlp, function in kept.items():
            mlp.act_fn = function


@pytest.fixture(scope="session", params=TINY_MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    tiny = TINY_MODELS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    model = save(tiny, directory)
    file = directory / "F32.gguf"
    write_gguf(open_checkpoint(directory), file)
    return Exported(tiny, model, directory, file)


def test_llama_cpp_computes_what_transformers_computes(exported: Exported) -> None:
    tokens = sample_tokens()
    expected = llama_cpp_reference(exported.model, tokens)
    with LlamaCpp(exported.file) as runtime:
        actual = log_softmax(runtime.logits(tokens, exported.tiny.context))

    difference = np.abs(actual - expected)
    assert difference.max() < (TABLE_LIMIT if "gemma" in exported.tiny.model_type else F32_LIMIT)
    assert np.median(difference) < F32_LIMIT


def test_gguf_becomes_the_same_transformers_model(exported: Exported) -> None:
    config, tensors = to_hugging_face(open_checkpoint(exported.file))
    expected = {name: value.numpy() for name, value in exported.model.state_dict().items()}

    assert set(tensors) == set(expected)
    for name, value in expected.items():
        # 1 + weight - 1, in float32, loses the last bits of gemma's norms
        np.testing.assert_allclose(tensors[name].read(), value, rtol=0, atol=1e-6, err_msg=name)
    tokens = sample_tokens()
    difference = transformers_logits(model_of(config, tensors), tokens) - transformers_logits(
        exported.model, tokens
    )
    assert np.abs(difference).max() < F32_LIMIT


def test_q8_0_file_runs_as_its_dequantized_model(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "Q8_0.gguf"
    write_gguf(open_checkpoint(exported.directory), path, quantized=True)
    checkpoint = open_checkpoint(path)
    assert {t.dtype for t in checkpoint.tensors.values()} == {"F32", "Q8_0"}
    tokens = sample_tokens()
    expected = log_softmax(transformers_logits(model_of(*to_hugging_face(checkpoint)), tokens))
    with LlamaCpp(path) as runtime:
        actual = log_softmax(runtime.logits(tokens, exported.tiny.context))

    assert (actual - expected).std() / expected.std() < Q8_0_LIMIT


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda e: e.model_type)
def test_defaults_are_those_of_transformers(entry: Any) -> None:
    config = AutoConfig.for_model(entry.model_type).to_dict()
    if entry.sub_config:
        config = config[entry.sub_config]
    rope = config.pop("rope_parameters")
    full, sliding = (rope.get(kind, rope) for kind in ("full_attention", "sliding_attention"))
    config |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": sliding["rope_theta"]}
    expected = {
        key: config.get(key, config.get({"num_experts": "num_local_experts"}.get(key)))
        for key in entry.defaults
    }
    actual = dict(entry.defaults)
    actual["num_key_value_heads"] = actual["num_key_value_heads"] or actual["num_attention_heads"]

    assert actual == expected


def test_every_architecture_is_tested() -> None:
    tested = {tiny.model_type for tiny in TINY_MODELS.values()}

    assert tested | {"gemma3"} == set(known_model_types())


def test_multimodal_directory_gives_its_text_model(tmp_path: Path) -> None:
    text = {
        "vocab_size": 192,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "max_position_embeddings": 256,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "text.gguf"
    write_gguf(open_checkpoint(tmp_path), path)
    tokens = sample_tokens()
    with LlamaCpp(path) as runtime:
        actual = log_softmax(runtime.logits(tokens))
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = TableGelu()

    difference = np.abs(actual - log_softmax(transformers_logits(model, tokens)))
    assert difference.max() < TABLE_LIMIT
    assert np.median(difference) < F32_LIMIT


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "granitemoe"])
def test_fused_experts_on_disk_give_the_same_file(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = save(TINY_MODELS[name], tmp_path)
    separate = tmp_path / "separate.gguf"
    write_gguf(open_checkpoint(tmp_path), separate)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    fused = tmp_path / "fused.gguf"
    checkpoint = open_checkpoint(tmp_path)
    assert any(key.endswith("experts.gate_up_proj") for key in checkpoint.tensors)
    write_gguf(checkpoint, fused)

    assert fused.read_bytes() == separate.read_bytes()


def test_tied_model_that_stores_its_head_twice_is_written_once(tmp_path: Path) -> None:
    checkpoint = _changed(
        tmp_path, "qwen2", lambda tensors: {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    )
    names = [t.name for t in get_exporter("gguf").tensors(checkpoint)]

    assert "output.weight" not in names


def test_head_that_differs_from_the_embedding_is_written(tmp_path: Path) -> None:
    checkpoint = _changed(
        tmp_path, "qwen2", lambda tensors: {"lm_head.weight": _Other(tensors["model.embed_tokens.weight"])}
    )
    tensors = {t.name: t for t in get_exporter("gguf").tensors(checkpoint)}

    assert tensors["output.weight"].role == "head"
    assert tensors["token_embd.weight"].role == "embedding"


class _Other(LazyTensor):
    """Another tensor of the same shape."""

    def __init__(self, base: LazyTensor) -> None:
        self.base, self.name, self.shape, self.dtype = base, base.name, base.shape, base.dtype

    def rows(self, start: int, stop: int) -> np.ndarray:
        return -self.base.rows(start, stop)


def _changed(
    directory: Path,
    name: str,
    more: Callable[[Mapping[str, LazyTensor]], Mapping[str, LazyTensor | None]],
    **config: Any,
) -> Checkpoint:
    """A tiny model's checkpoint with other tensors (None: without) and settings."""
    save(TINY_MODELS[name], directory)
    found = open_checkpoint(directory)
    tensors = {**found.tensors, **more(found.tensors)}
    return Checkpoint(
        path=found.path,
        container=found.container,
        tensors={key: value for key, value in tensors.items() if value is not None},
        files=found.files,
        config={**found.config, **config},
    )


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown": ("llama", {"model_type": "mamba9"}, "mamba9.*qwen3.*GGUF file"),
    "no type": ("llama", {"model_type": None}, "model_type None"),
    "activation": ("llama", {"hidden_act": "relu"}, "hidden_act.*relu.*silu"),
    "rope type": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    "rope of another": (
        "qwen2",
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "rope_theta": 1.0}},
        "llama3.*yarn",
    ),
    "rope without factor": ("llama", {"rope_parameters": {"rope_type": "linear"}}, "lack factor"),
    "no caps": ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
    "attention scale": ("gemma2", {"query_pre_attn_scalar": 144}, "144.*32"),
    "no window": ("gemma2", {"sliding_window": None}, "sliding window"),
    "two bases": (
        "olmo3",
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 5.0},
                "sliding_attention": {"rope_theta": 3.0},
            }
        },
        "3.0.*5.0",
    ),
    "rope everywhere": ("smollm3", {"no_rope_layers": [1] * 5}, "without rope"),
    "dense blocks": ("qwen3_moe", {"mlp_only_layers": [1]}, r"dense blocks \[1\]"),
    "unnormalised experts": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "no size": ("llama", {"hidden_size": None, "intermediate_size": "96"}, "no usable"),
    "too many blocks": ("llama", {"num_hidden_layers": 10**9}, "1000000000 blocks"),
    "fewer blocks": ("llama", {"num_hidden_layers": 2}, r"surplus.*layers\.2"),
    "odd heads": ("llama", {"num_attention_heads": 7}, "7 heads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_run_is_refused(case: str, tmp_path: Path) -> None:
    name, config, message = REFUSED[case]
    checkpoint = _changed(tmp_path, name, lambda _: {}, **config)

    with pytest.raises(ArchitectureError, match=message):
        [t.source.read() for t in get_exporter("gguf").tensors(checkpoint)]


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = _changed(tmp_path, "llama", lambda _: {name: None})
    with pytest.raises(ArchitectureError, match=f"lacks.*{name}"):
        get_exporter("gguf").tensors(lacking)

    extra = _changed(tmp_path, "llama", lambda tensors: {"model.extra.weight": tensors[name]})
    with pytest.raises(ArchitectureError, match=r"surplus.*model\.extra\.weight"):
        get_exporter("gguf").tensors(extra)


def test_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    checkpoint = _changed(
        tmp_path,
        "llama",
        lambda tensors: {"model.layers.0.self_attn.rotary_emb.inv_freq": tensors["model.norm.weight"]},
    )

    assert len(get_exporter("gguf").tensors(checkpoint)) == len(checkpoint.tensors) - 1


def test_files_of_other_tools_become_transformers_models() -> None:
    path = published_model()
    config, tensors = to_hugging_face(open_checkpoint(path))
    model = model_of(config, tensors)
    with LlamaCpp(path) as runtime:
        tokens = runtime.tokenize(
            "The three laws of thermodynamics say that energy is conserved, entropy grows"
        )
        actual = log_softmax(runtime.logits(tokens))
    expected = log_softmax(transformers_logits(model, tokens))

    assert (np.exp(expected) * (expected - actual)).sum(-1).mean() < 0.02
    assert (actual.argmax(-1) == expected.argmax(-1)).mean() >= 0.9
