"""What mtllm-train is measured against: the same model and arithmetic in plain PyTorch with
torch.compile, on random tokens.

    peer.py tinyllama-1.1b|llama-2-7b|llama-3-8b [--steps=N] [--attention=auto|cudnn|flash]

"master" (TinyLlama): bf16 compute weights, fp32 master weights, gradients added up in fp32, fp32
moments, fused AdamW. "bf16" (the others): everything in bf16. Prints one JSON line: tokens/s of the
median step after warming up, seconds to the end of the first step from the start of the process,
GiB at most.
"""

import time

START = time.time()

import argparse
import json
import os
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MODELS = {
    "tinyllama-1.1b": dict(vocabulary=32000, hidden=2048, ffn=5632, layers=22, heads=32, kv_heads=4,
                           micro=4, accumulation=4, state="master"),
    "llama-2-7b": dict(vocabulary=32000, hidden=4096, ffn=11008, layers=32, heads=32, kv_heads=32,
                       micro=1, accumulation=8, state="bf16"),
    "llama-3-8b": dict(vocabulary=128256, hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8,
                       micro=1, accumulation=8, state="bf16"),
}
SEQUENCE = 4096


def rotate(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Layer(torch.nn.Module):
    def __init__(self, hidden, ffn, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, hidden // heads
        self.qkv = torch.nn.Linear(hidden, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.out = torch.nn.Linear(hidden, hidden, bias=False)
        self.gate_up = torch.nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = torch.nn.Linear(ffn, hidden, bias=False)
        self.norm = torch.nn.RMSNorm(hidden, eps=1e-5)
        self.norm2 = torch.nn.RMSNorm(hidden, eps=1e-5)

    def forward(self, x, cosine, sine):
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, -1, self.dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        mixed = F.scaled_dot_product_attention(rotate(q, cosine, sine), rotate(k, cosine, sine), v,
                                               is_causal=True,
                                               enable_gqa=self.heads != self.kv_heads)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(torch.nn.Module):
    def __init__(self, vocabulary, hidden, ffn, layers, heads, kv_heads):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, hidden)
        self.layers = torch.nn.ModuleList(Layer(hidden, ffn, heads, kv_heads)
                                          for _ in range(layers))
        self.norm = torch.nn.RMSNorm(hidden, eps=1e-5)
        self.head = torch.nn.Linear(hidden, vocabulary, bias=False)
        dim = hidden // heads
        angles = torch.outer(torch.arange(SEQUENCE).float(),
                             10000 ** (-torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--attention", default="auto", choices=("auto", "cudnn", "flash"))
    arguments = parser.parse_args()
    shape = dict(MODELS[arguments.model])
    micro, accumulation, state = (shape.pop(k) for k in ("micro", "accumulation", "state"))
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = Llama(**shape)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model = model.to(torch.bfloat16)
    parameters = list(model.parameters())
    if state == "master":
        masters = [p.detach().float().requires_grad_() for p in parameters]
        for master in masters:
            master.grad = torch.zeros_like(master)
        for parameter, master in zip(parameters, masters):
            def accumulate(p, master=master):
                master.grad.add_(p.grad)
                p.grad = None
            parameter.register_post_accumulate_grad_hook(accumulate)
    else:
        masters = parameters
    optimizer = torch.optim.AdamW(masters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model)
    backends = {"auto": None, "cudnn": [SDPBackend.CUDNN_ATTENTION],
                "flash": [SDPBackend.FLASH_ATTENTION]}[arguments.attention]

    def step():
        for _ in range(accumulation):
            tokens = torch.randint(shape["vocabulary"], (micro, SEQUENCE + 1), device="cuda")
            loss = compiled(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        if state == "master":
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)
                torch._foreach_zero_([m.grad for m in masters])
        else:
            optimizer.zero_grad(set_to_none=False)
        return loss

    times, first = [], None
    for number in range(arguments.steps):
        begin = time.time()
        if backends:
            with sdpa_kernel(backends):
                loss = step()
        else:
            loss = step()
        loss.item()
        if first is None:
            first = time.time() - START
        times.append(time.time() - begin)
    tokens = micro * accumulation * SEQUENCE
    print(json.dumps(dict(peer=f"PyTorch {torch.__version__} torch.compile", model=arguments.model,
                          attention=arguments.attention, state=state,
                          tokens_per_s=round(tokens / statistics.median(times[3:])),
                          first_step_s=round(first, 1),
                          gib=round(torch.cuda.max_memory_allocated() / 2**30, 1),
                          loss=round(loss.item(), 4))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
