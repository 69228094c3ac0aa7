"""The report on outliers, on a model that was given some."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewbits.cli.main import app
from fewbits.pipeline.outliers import outliers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LOUD, FACTOR = 9, 60.0
NORM = "model.layers.1.input_layernorm.weight"
QUERIES = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def loud_llama(tiny_llama, tmp_path_factory):
    """The tiny model with one channel made loud before the attention of its second block, and read as before."""
    folder = tmp_path_factory.mktemp("loud") / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights[NORM][LOUD] *= FACTOR
    for name in "qkv":
        weights[f"model.layers.1.self_attn.{name}_proj.weight"][:, LOUD] /= FACTOR
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert torch.isfinite(weights[NORM]).all()
    return folder


def test_a_loud_channel_is_found_and_costs_little_once_it_is_rescaled(loud_llama, sample_text, few_tokens):
    del few_tokens  # for what it sets
    found = outliers(loud_llama, sample_text, threads=2)
    by_name = {m.name: m for m in found.maps}
    loud, quiet = by_name[QUERIES], by_name[QUERIES.replace("layers.1", "layers.0")]

    assert len(found.maps) == 21
    assert [channel for channel, _ in loud.channels] == [LOUD]
    assert loud.channels[0][1] == pytest.approx(FACTOR, rel=0.6)
    assert loud.ratio > 2 * quiet.ratio
    assert loud.cost > 5 * quiet.cost
    assert loud.cost_rescaled < 0.05 * loud.cost
    assert found.cost == pytest.approx(sum(m.cost for m in found.maps))


def test_the_command_prints_a_line_for_each_map_or_one_json_object(loud_llama, sample_text, few_tokens):
    del few_tokens
    options = ["inspect", str(loud_llama), "--outliers", "--calibration", str(sample_text), "--threads", "2"]
    text = CliRunner().invoke(app, options)
    data = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)

    assert text.exit_code == 0
    (line,) = [line for line in text.stdout.splitlines() if line.startswith(QUERIES)]
    assert f"{LOUD} (" in line
    (queries,) = [m for m in data["maps"] if m["name"] == QUERIES]
    assert queries["channels"][0]["channel"] == LOUD
    assert queries["cost_rescaled"] < queries["cost"] < data["cost"]


def test_a_calibration_text_without_outliers_is_refused(tiny_llama, sample_text):
    found = CliRunner().invoke(app, ["inspect", str(tiny_llama), "--calibration", str(sample_text)])

    assert found.exit_code != 0
    assert "Traceback" not in found.output
