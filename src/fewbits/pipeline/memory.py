"""What processes take before they do anything: measured resident sizes on Linux x86-64, in bytes."""

# The interpreter with NumPy and the formats loaded.
BASE_MEMORY = 150_000_000
# What PyTorch and transformers add, to the process that plans a calibrated run.
TORCH_MEMORY = 500_000_000
