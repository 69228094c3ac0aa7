"""Facts about Core ML's packages."""

from fewbits.targets.target import Runtime, Scheme, Target

_OPTIMIZE = "https://apple.github.io/coremltools/docs-guides/source/opt-overview.html"

TARGET = Target(
    "coreml",
    "Core ML package (.mlpackage)",
    runtimes=(
        Runtime(
            "Core ML", "Apple's CPUs, GPUs and Neural Engine; it runs on Apple's systems only, so here the package is "
            "validated and its weights are read back", row="coreml",
            sources=("https://developer.apple.com/documentation/coreml",),
        ),
    ),
    schemes=(
        Scheme(
            "integers of 4 and 8 bits", ("COREML{4|8}_{G16|G32|G64|G128|CHANNEL}[_SYM]",),
            "iOS 18 and macOS 15 on", "", (_OPTIMIZE,), ("apple",),
        ),
        Scheme(
            "palettes of 2, 3 and 6 bits", ("COREML{2|3|6}_CHANNEL_SYM",), "iOS 18 and macOS 15 on", "", (_OPTIMIZE,),
            ("apple",),
        ),
    ),
)  # fmt: skip
