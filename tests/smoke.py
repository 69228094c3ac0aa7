"""What an installed wheel must do, without PyTorch: write a small GGUF file, run it, and read it again."""

import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from fewbits import _native
from fewbits.cli.main import main
from fewbits.engine.engine import open_engine
from fewbits.errors import EngineError

HIDDEN, FEED, HEADS, VOCABULARY, BLOCKS = 64, 96, 4, 48, 2


def write_model(path: Path) -> None:
    """A Llama of random numbers in Q8_0 and Q4_0."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    rng = np.random.default_rng(1)

    def add(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
        numbers = rng.standard_normal((rows, columns)).astype(np.float32) / columns**0.5
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(numbers, kind), raw_dtype=kind)

    q8, q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
    add("token_embd", VOCABULARY, HIDDEN, q8)
    for block in range(BLOCKS):
        for name, rows, columns in (
            *((f"attn_{part}", HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")),
            ("ffn_gate", FEED, HIDDEN), ("ffn_up", FEED, HIDDEN), ("ffn_down", HIDDEN, FEED),
        ):  # fmt: skip
            add(f"blk.{block}.{name}", rows, columns, q4)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_model(path: Path) -> None:
    """Logits are finite, the same for any number of threads and cut of the text, and nonsense is refused."""
    tokens = list(range(20))
    whole = open_engine(path, threads=1).step([0] * 20, tokens, range(20))
    assert whole.shape == (20, VOCABULARY)
    assert np.isfinite(whole).all()
    assert whole.std() > 0.1
    for cache in ("f16", "q8", "q4"):
        engine = open_engine(path, threads=2, kv_cache=cache)
        parts = [engine.step([0], [token], [0])[0] for token in tokens]
        distance = np.abs(np.stack(parts) - whole).max()
        assert distance == 0 if cache == "f16" else distance < whole.std(), (cache, distance)
    try:
        engine.step([0], [VOCABULARY], [0])
    except EngineError:
        return
    raise AssertionError("a token that there isn't was taken")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        write_model(model)
        run_model(model)
        sys.argv = ["fewbits", "inspect", str(model)]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    assert "torch" not in sys.modules
    sys.stdout.write(f"kernels: {_native.isa()}, {_native.packed_isas()}\n")
