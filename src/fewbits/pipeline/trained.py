"""Training the numbers of a finished artifact: original and artifact as live models, and which tensor lies where."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import nn

from fewbits.calibration.text import CalibrationTokens
from fewbits.checkpoint.dtypes import PLAIN, decode_plain, encode_plain
from fewbits.checkpoint.source import open_checkpoint
from fewbits.export.exporter import WHOLE
from fewbits.formats import get_format
from fewbits.language_model.predictions import Predictor
from fewbits.language_model.threads import torch_threads
from fewbits.language_model.transformers_model import model_of
from fewbits.pipeline.job import Job, Settings
from fewbits.pipeline.journal import Journal, part_path
from fewbits.pipeline.provenance import ASKED_FOR
from fewbits.pipeline.statistics_rows import statistics_rows, vector_places
from fewbits.pipeline.tuning import TunedNumbers, TuningResult, read_matrix, tunable
from fewbits.planning.byte_size import format_bytes
from fewbits.progress import Progress
from fewbits.tuning.distillation import LOGITS, Schedule, Teacher, divergence, train
from fewbits.tuning.parameters import MatrixParameters, VectorParameters, trainable_part
from fewbits.tuning.student import Place, Student, Tuned

# By effort; efforts that aren't named don't tune.
SCHEDULES = {"best": Schedule()}

# Bits of a weight from which on tuning isn't tried unless it is asked for: on a file of 4.7 bits it took as long as
# everything else and was undone, while it takes a third off the loss at 2 (docs/log.md).
ENOUGH_BITS = 4

# Bytes for each weight: itself and its code. Gradients live for one matrix at a time.
_WEIGHT, _GRADIENT = 5, 4
# Numbers of 32 bits that a linear map's input and output leave for the way back, each: two of 16.
_KEPT = 1
# Arrays of as many logits as are made at once.
_LOGIT_ARRAYS = 8
# Resident size of a process with PyTorch and transformers.
_BASE = 700_000_000


def trained_numbers(
    job: Job, tokens: CalibrationTokens, journal: Journal, settings: Settings, progress: Progress
) -> TunedNumbers:
    """Tune the artifact in memory, and check on held-out text whether it is better for it.

    Raises:
        EvaluationError: transformers can't build one of the models.
    """
    schedule = SCHEDULES[job.provenance.effort]
    matrices = [(prod(tensor.shape), name) for tensor, name in tunable(job) if len(tensor.shape) > 1]
    if not matrices:
        return TunedNumbers(TuningResult(False, note="no matrix has fewer than 8 bits"))
    bits = sum(size * get_format(name).bits for size, name in matrices) / sum(size for size, _ in matrices)
    if job.provenance.tuning != ASKED_FOR and bits >= ENOUGH_BITS:
        return TunedNumbers(TuningResult(False, note=f"{float(bits):.1f} bits a weight (--tune does it)"))
    if (need := tuning_memory(job, tokens)) > settings.memory_bytes:
        note = f"takes {format_bytes(need)} of memory"
        progress.message(f"the numbers aren't tuned: it {note}; allow it with --memory")
        return TunedNumbers(TuningResult(False, note=note))
    with torch_threads(settings.cores):
        return _trained(job, tokens, journal, schedule, progress)


def _trained(
    job: Job, tokens: CalibrationTokens, journal: Journal, schedule: Schedule, progress: Progress
) -> TunedNumbers:
    used, checked = _used(tokens, schedule)
    ids, held_out = torch.from_numpy(tokens.training[:used]), torch.from_numpy(tokens.blocks[-checked:])
    seen = schedule.steps(used) * min(schedule.batch, used) * ids.shape[1]
    work = ids.numel() + seen + 3 * held_out.numel()
    progress.stage("tuning", work, "tokens")
    teacher = Teacher(Predictor(model_of(job.checkpoint)), torch.cat([ids, held_out]), progress.advance)
    model = model_of(open_checkpoint(part_path(journal.output)))
    student = Student(Predictor(model), _tuned_tensors(job, journal, model))
    if not student.tuned:
        return TunedNumbers(TuningResult(False, note="no format has numbers to tune"))
    before = divergence(student, teacher, held_out, len(ids), progress.advance)
    train(student, teacher, ids, schedule, progress.advance)
    found = _rounded(job, student)
    after = divergence(student, teacher, held_out, len(ids), progress.advance)
    result = TuningResult(after < before, before, after)
    return replace(found, result=result) if result.kept else TunedNumbers(result)


def _used(tokens: CalibrationTokens, schedule: Schedule) -> tuple[int, int]:
    """Sequences to train on and to check on."""
    training = len(tokens.training)
    return min(training, schedule.steps(training) * schedule.batch), min(tokens.held_out, schedule.checked)


def _tuned_tensors(job: Job, journal: Journal, model: nn.Module) -> dict[str, Tuned]:
    """Everything that can be tuned and is found in the live model, by container tensor name."""
    live = {name: parameter.shape for name, parameter in model.named_parameters()}
    maps = {name for name, shape in live.items() if len(shape) == 2}
    maps |= {f"{name}#{e}" for name, shape in live.items() if len(shape) == 3 for e in range(shape[0])}
    segments = statistics_rows(job.exporter, job.tensors, job.metadata, maps)
    names = {name for name, shape in live.items() if len(shape) == 1}
    vectors = vector_places(job.exporter, job.tensors, job.metadata, names)
    held = {place.tensor: (name, place) for name, place in vectors.items()}
    found: dict[str, Tuned] = {}
    for tensor, fmt in tunable(job):
        regions = job.layout.parts[tensor.name]
        if fmt in PLAIN and tensor.name in held:
            name, place = held[tensor.name]
            order = np.argsort(place.positions)
            if np.array_equal(place.positions[order], np.arange(tensor.shape[0])):
                raw = np.frombuffer(journal.read(regions[WHOLE]), np.uint8)
                numbers = decode_plain(fmt, raw.reshape(1, -1))[0]
                where = Place(name, None, 0, order, place.shift)
                found[tensor.name] = Tuned(VectorParameters(np.array(numbers)), (where,))
        elif fmt not in PLAIN and tensor.name in segments:
            qtensor = read_matrix(journal, regions, fmt, tensor.shape)
            part = trainable_part(qtensor.format, qtensor.params)
            if part is not None:
                pieces = [(*s.parameter.partition("#"), s) for s in segments[tensor.name]]
                places = tuple(Place(n, int(e) if e else None, s.start, s.rows) for n, _, e, s in pieces)
                found[tensor.name] = Tuned(MatrixParameters(qtensor, part), places)
    return found


def _rounded(job: Job, student: Student) -> TunedNumbers:
    """The trained numbers as the container holds them, which the live model then computes with as well."""
    matrices, vectors = {}, {}
    for name, found in student.tuned.items():
        logarithms = [numbers.numpy() for numbers in student.logarithms[name]]
        if isinstance(found.parameters, MatrixParameters):
            coefficients = found.parameters.rounded(logarithms)
            matrices[name] = (found.parameters.part, coefficients)
            student.put(name, found.parameters.with_coefficients(coefficients).dequantize())
        else:
            dtype = job.plan.tensors[name].format
            stored = encode_plain(dtype, found.parameters.values(logarithms)[None])
            vectors[name] = decode_plain(dtype, stored)[0]
            student.put(name, vectors[name])
    return TunedNumbers(TuningResult(True), matrices, vectors)


def tuning_memory(job: Job, tokens: CalibrationTokens) -> int:
    """Bytes resident at the peak, at most."""
    sequences = sum(_used(tokens, SCHEDULES[job.provenance.effort]))
    weights = sum(prod(t.shape) for t in job.tensors)
    maps = [t for t in job.tensors if len(t.shape) > 1]
    embedding = max(maps, key=lambda t: prod(t.shape))
    length: int = tokens.blocks.shape[1]
    kept = sum(length * (t.shape[-1] + t.shape[-2]) for t in maps if t.block is not None)
    hidden = sequences * length * embedding.shape[-1]
    numbers: int = _KEPT * kept + hidden + _LOGIT_ARRAYS * LOGITS + prod(embedding.shape)
    return _BASE + _WEIGHT * weights + _GRADIENT * prod(embedding.shape) + 4 * numbers
