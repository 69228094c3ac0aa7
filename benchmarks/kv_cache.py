"""What rounding the key-value cache costs: KL divergence of a model from itself with each cache that `evaluate` knows.

python benchmarks/kv_cache.py MODEL --calibrate TEXT --text TEXT --context 512 --chunks 4 --out FILE.json

FP8 with scales of the files is tried with scales found here, on the calibration text, in two ways: the largest
magnitude, and the least squared error of a sample. The results are written after each chunk of text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from fewbits.architectures.interpreter import to_hugging_face
from fewbits.checkpoint.source import open_checkpoint
from fewbits.evaluation.kv_cache import CacheScheme, StoredScales, scheme_names
from fewbits.evaluation.kv_rounding import Static
from fewbits.evaluation.language_model import load_language_model
from fewbits.evaluation.quality import position_statistics
from fewbits.evaluation.stored_kv_cache import scheme_of

E4M3 = torch.float8_e4m3fn
_LARGEST = 448.0


class Seen(DynamicCache):
    """Keeps all keys and values of a text: layer -> [H, tokens, D]."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Note, then keep."""
        self.states[layer_idx] = key_states[0], value_states[0]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def calibrated(model: Any, tokens: list[int], context: int, chunks: int) -> dict[str, CacheScheme]:
    """FP8 schemes by how their scales were found."""
    config = model._model.config.get_text_config(decoder=True)
    seen: list[Seen] = []
    for i in range(chunks):
        cache = Seen(config)
        with torch.inference_mode():
            model._model(
                input_ids=torch.tensor([tokens[i * context : (i + 1) * context]]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        seen.append(cache)
    layers = sorted(seen[0].states)
    found = {}
    for per_head in (False, True):
        for way, choose in (("amax", amax), ("mse", least_error)):
            scales: list[dict[int, torch.Tensor]] = [{}, {}]
            for layer in layers:
                for part in (0, 1):
                    x = torch.cat([cache.states[layer][part] for cache in seen], dim=1)
                    rows = x if per_head else x.reshape(1, -1, x.shape[-1])
                    scale = torch.stack([choose(row) for row in rows])
                    scales[part][layer] = scale.reshape(-1, 1, 1) if per_head else scale.reshape(())
            name = f"fp8_e4m3, {way}, {'per head' if per_head else 'per layer'}"
            rounding = Static(E4M3)
            found[name] = CacheScheme(name, rounding, rounding, "config.json", StoredScales(*scales))
    integers = Static(torch.int8)
    base = found["fp8_e4m3, amax, per layer"].scales
    stretched = StoredScales(
        *({layer: s * (_LARGEST / 127) for layer, s in part.items()} for part in (base.keys, base.values))
    )
    found["int8, amax, per layer"] = CacheScheme(
        "int8, amax, per layer", integers, integers, "config.json", stretched
    )
    return found


def amax(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude becomes the largest code."""
    return x.abs().max() / _LARGEST


def least_error(x: torch.Tensor) -> torch.Tensor:
    """Of scales up to 8 times smaller, in steps of an eighth of a power of two, that of least squared error."""
    sample = x.reshape(-1, x.shape[-1])[::17]
    rounding = Static(E4M3)
    tried = [amax(x) * 2 ** (-j / 8) for j in range(25)]
    errors = [float((rounding(sample, scale) - sample).square().sum()) for scale in tried]
    return tried[int(np.argmin(errors))]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    model = load_language_model(checkpoint, "float")

    def ids(path: str) -> list[int]:
        return model.tokenizer.encode(Path(path).read_text(encoding="utf-8")[:200_000], markup=False)

    tensors = to_hugging_face(checkpoint)[1] if checkpoint.container == "gguf" else {}
    names = [name for name in scheme_names()[1:] if arguments.only is None or name in arguments.only]
    schemes = {name: scheme_of(checkpoint, model._model, tensors, name) for name in names}
    if arguments.only is None or set(arguments.only) - set(names):
        found = calibrated(model, ids(arguments.calibrate), 512, 8)
        schemes |= {n: s for n, s in found.items() if arguments.only is None or n in arguments.only}
    text, context = ids(arguments.text), arguments.context
    kl: dict[str, list[float]] = {name: [] for name in schemes}
    config = model._model.config.get_text_config(decoder=True)
    for i in range(arguments.chunks):
        chunk = text[i * context : (i + 1) * context]
        first, following = context // 2, np.array(chunk[context // 2 + 1 :])
        with torch.inference_mode():
            exact = logits(model, chunk[:-1], DynamicCache(config=config), first)
            for name, scheme in schemes.items():
                assert scheme is not None
                cache = scheme.cache(config)
                rounded = logits(model, chunk[:-1], cache, first)
                kl[name] += position_statistics(exact, rounded, following).kl.tolist()
        result = {
            "model": Path(arguments.model).name, "context": context, "chunks": i + 1,
            "schemes": {
                name: {"kl": float(np.mean(v)), "error": float(np.std(v) / len(v) ** 0.5),
                       "bits": schemes[name].bits(64, 64) / 128}  # type: ignore[union-attr]
                for name, v in kl.items()
            },
        }  # fmt: skip
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")


def logits(model: Any, tokens: list[int], cache: Any, first: int) -> Any:
    """Logits of the positions from `first` on, float32 [S, V]."""
    output = model._model(
        input_ids=torch.tensor([tokens]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=len(tokens) - first,
    )
    return output.logits[0].float().numpy()


if __name__ == "__main__":
    main()
