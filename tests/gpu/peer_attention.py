"""Attention by PyTorch's cuDNN backend, which mtllm's use of cuDNN is measured against: causal, bf16,
32 heads of 128, one sequence of 8192. Prints TFLOP/s of the forward and of the backward pass
(2 B H T^2 d operations, and 2.5 times that), medians of 21 runs.
"""

import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, LENGTH, DIM, RUNS = 32, 8192, 128, 21
OPERATIONS = 2 * HEADS * LENGTH**2 * DIM


def median_ms(work):
    times = []
    for _ in range(RUNS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def main():
    qkv = torch.randn(1, LENGTH, 3 * HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    q, k, v = (t.requires_grad_() for t in qkv.transpose(1, 2).split(HEADS, dim=1))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        forward = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        backward = median_ms(lambda: torch.autograd.grad(out, (q, k, v), gradient,
                                                         retain_graph=True))
    print(f"{OPERATIONS / forward * 1e-9:.1f} {2.5 * OPERATIONS / backward * 1e-9:.1f}")


if __name__ == "__main__":
    main()
