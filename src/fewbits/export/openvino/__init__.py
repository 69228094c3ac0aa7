"""Writing OpenVINO's graphs (IR) with compressed weights, for Intel's CPUs, GPUs and NPUs."""
