"""Programs for ExecuTorch's XNNPACK backend, on phones and other CPUs."""
