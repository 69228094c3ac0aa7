import fewbits

PUBLIC = [
    "DryRun", "Evaluation", "FewbitsError", "FilePoint", "Generation", "ImatrixResult", "Inspection",
    "Model", "Plan", "QuantizeResult", "RepackResult", "TensorChoice", "Verification", "__version__", "dry_run",
    "evaluate", "frontier", "generate", "imatrix", "inspect", "load", "plan", "quantize", "repack", "verify",
]  # fmt: skip


def test_the_public_names_are_these_and_all_of_them_exist():
    assert PUBLIC == fewbits.__all__
    assert [name for name in PUBLIC if getattr(fewbits, name, None) is None] == []
