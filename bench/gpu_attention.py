"""What fused attention costs on a GPU, by the number of heads (for the chapter on a GPU)

    python bench/gpu_attention.py [OUT.json]

64 sequences of the model of the paper's size: width 768 in 32 heads of 24, as AC-LAM's appendix
has it, or in 12 heads of 64, as a ViT-B; milliseconds forward, and forward and backward, bf16, by
each of PyTorch's kernels.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton.testing import do_bench

ROWS = 64
SHAPES = {  # name: heads, tokens, numbers of a head
    "IDM, 32 heads of 24": (32, 516, 24),
    "IDM, 12 heads of 64": (12, 516, 64),
    "FDM, 12 heads of 64": (12, 257, 64),
}
KERNELS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)


def milliseconds(work) -> float:
    return do_bench(work, warmup=20, rep=120, return_mode="median")


def measure(shape: tuple[int, int, int], kernel: SDPBackend) -> dict[str, float]:
    """Median milliseconds of one kernel at one shape."""
    heads, tokens, numbers = shape
    size = (ROWS, heads, tokens, numbers)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    q, k, v = (torch.randn(size, **make, requires_grad=True) for _ in range(3))
    above = torch.randn(size, **make)

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v)

    def both() -> None:
        forward().backward(above)

    with sdpa_kernel(kernel):
        return {"forward_ms": milliseconds(forward), "both_ms": milliseconds(both)}


def main(argv: list[str]) -> None:
    rows = []
    for name, shape in SHAPES.items():
        for kernel in KERNELS:
            rows.append({"shape": name, "kernel": kernel.name, **measure(shape, kernel)})
    found = {
        "made_by": "python bench/gpu_attention.py",
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "rows": rows,
    }
    said = json.dumps(found, indent=1)
    if argv:
        Path(argv[0]).write_text(said + "\n")
    print(said)


if __name__ == "__main__":
    main(sys.argv[1:])
