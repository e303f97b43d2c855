"""A PyTorch module of one's own, traced without weights and simulated; needs opgraph[torch]."""

import torch
from torch import nn

from frontends import from_torch
from hardware import load_platform
from opgraph import Plan, Workload, simulate


class Block(nn.Module):
    """Attention and a feed-forward network, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        """A block of *width* features."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One step."""
        batch, seq, _ = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        query, key, value = (p.view(batch, seq, self.heads, -1).transpose(1, 2) for p in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


with torch.device("meta"):
    blocks = nn.Sequential(*(Block(8192, 64) for _ in range(40))).bfloat16()
    example = torch.zeros(2, 16, 8192, dtype=torch.bfloat16)
model = from_torch(blocks, (example,), name="blocks")
print(model.prefill)
print(f"{model.num_parameters:,} parameters, {model.kv_bytes_per_token:,.0f} B of KV per token")
report = simulate(model, load_platform("dgx-h100"), Plan(tp=4), Workload(batch=16, prompt=1024))
print(f"prefill {report.ttft * 1e3:.1f} ms, decode step {report.tpot * 1e3:.2f} ms")
