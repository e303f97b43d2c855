"""The registry: every measured table that a kernel is fitted on, with its declared choices."""

from typing import Any

import numpy as np
import pandas as pd

from opgraph.kernels.attention import AttentionShape
from opgraph.kernels.collective import CollectiveShape, DispatchShape
from opgraph.kernels.formats import FORMATS
from opgraph.kernels.gemm import GemmShape
from opgraph.kernels.linear_attention import LinearShape
from opgraph.kernels.memory_bound import StreamShape, quantise
from opgraph.kernels.mla import MlaShape
from opgraph.kernels.moe import MoeShape, Routing, route
from validation.datasets import MICROSECOND, Dataset, Rule, uncleaned

LEAST_SIDE = 128
TRT_COPIES, OTHER_COPIES = 5, 6
HELD_SIZES = (5120, 7168)
HELD_HEADS = (12, 40)
HELD_KV_HEADS = 4


def _columns(frame: pd.DataFrame, *names: str) -> tuple[np.ndarray, ...]:
    """Return columns as floats."""
    return tuple(frame[name].to_numpy(float) for name in names)


def _gemm_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> GemmShape:
    """Return sizes; `copies` says how many weight matrices the collector rotated through."""
    m, n, k = _columns(frame, "m", "n", "k")
    weight = n * k * FORMATS[dtype].weight
    enough = np.clip(np.ceil(chip.cache.capacity / weight), 1, TRT_COPIES)
    copies = np.where(frame["backend"] == "trtllm", enough, OTHER_COPIES)
    single = (frame["backend"] == "vllm") & (dtype in ("fp8_block", "nvfp4"))
    return GemmShape(m, n, k, dtype, 1.0, np.where(single, 1.0, copies).astype(float))


STALL = 1.5


def _not_stalled(size: str, keys: tuple[str, ...]) -> Any:
    """Return a rule that keeps rows not much slower than larger ones of the same keys."""

    def keep(frame: pd.DataFrame) -> Any:
        groups = [key for key in (*keys, "kernel_source") if key != size and key in frame]
        typical = frame.groupby([*groups, size])["latency"].transform("median")
        ordered = frame.assign(typical=typical).sort_values(size, ascending=False)
        floor = ordered.groupby(groups)["typical"].cummin()
        slow = ordered["typical"] > STALL * floor
        # what is no time is not dropped here: it is refused later
        return (~slow | (ordered["typical"] <= 0)).reindex(frame.index)

    return keep


def _stalled(size: str, keys: tuple[str, ...]) -> Rule:
    """Return the rule that leaves out the collector's stalls."""
    return Rule("stalled", f"rows over 1.5 times slower than one of the same group of a larger "
                f"`{size}` are stalls of the collector", _not_stalled(size, keys))  # fmt: skip


GEMM_RULES = (
    Rule("vllm fp8_block", "vLLM 0.24 measured fp8_block eagerly: host-bound floor of 55-282 us",
         lambda f: ~((f["backend"] == "vllm") & (f["gemm_dtype"] == "fp8_block"))),
    Rule("small sides", "n, k < 128 occur in no model and are pure launch",
         lambda f: (f["n"] >= LEAST_SIDE) & (f["k"] >= LEAST_SIDE)),
    Rule("stalled", "rows over 1.5 times slower than one of the same n and k with more rows: the "
         "library took a kernel that does not suit them", _not_stalled("m", ("m", "n", "k"))),
)  # fmt: skip
GEMM_TABLE = Dataset(
    op="gemm", table="gemm", keys=("m", "n", "k"), load="m",
    backends=("trtllm", "sglang", "vllm"),
    why="a linear layer as each engine calls it, with the quantiser of its activation",
    select={"bf16": {"gemm_dtype": "bfloat16"}, "fp8": {"gemm_dtype": "fp8"},
            "fp8_block": {"gemm_dtype": "fp8_block"}, "nvfp4": {"gemm_dtype": "nvfp4"},
            "int8": {"gemm_dtype": "sq"}, "w8a16": {"gemm_dtype": "int8_wo"},
            "w4a16": {"gemm_dtype": "int4_wo"}},
    shape=_gemm_shape,
    family=lambda f: f["n"].isin(HELD_SIZES) | f["k"].isin(HELD_SIZES),
    family_means="n or k of 5120 or 7168",
    rules=GEMM_RULES,
)  # fmt: skip

ATTENTION_KEYS = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim",
                  "window_size")  # fmt: skip
ATTENTION_SELECT = {
    "bf16": {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"},
    "bf16-kv-fp8": {"attn_dtype": "bfloat16", "kv_cache_dtype": "fp8"},
    "fp8": {"attn_dtype": "fp8", "kv_cache_dtype": "fp8"},
}


def _attention_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> AttentionShape:
    """Return per-chip sizes; in decode `isl` is 1 and `step` tokens are already cached."""
    batch, seq, step, heads, kv = _columns(
        frame, "batch_size", "isl", "step", "num_heads", "num_key_value_heads"
    )
    window = frame["window_size"].fillna(0).to_numpy(float) if "window_size" in frame else 0.0 * seq
    size = frame["head_dim"].to_numpy(float)
    product = "fp8" if dtype == "fp8" else "bf16"
    kv_bytes = 2.0 if dtype == "bf16" else 1.0
    return AttentionShape(batch, seq, step + seq, heads, kv, size, window, product, kv_bytes, 1.0)


def _attention_family(frame: pd.DataFrame) -> Any:
    """Return rows of 12 or 40 heads, or 4 KV heads."""
    return frame["num_heads"].isin(HELD_HEADS) | (frame["num_key_value_heads"] == HELD_KV_HEADS)


PREFILL_TABLE = Dataset(
    op="attention_prefill", table="context_attention", keys=ATTENTION_KEYS, load="isl",
    backends=("trtllm",),
    why="one kernel family (FMHA), the widest sweep, and the only one that times all that a "
        "prefill step runs: rotation, cache write and attention",
    select=ATTENTION_SELECT, shape=_attention_shape, family=_attention_family,
    family_means="12 or 40 heads, or 4 KV heads", rules=(_stalled("isl", ATTENTION_KEYS),),
)  # fmt: skip
DECODE_TABLE = Dataset(
    op="attention_decode", table="generation_attention", keys=ATTENTION_KEYS, load="step",
    backends=("sglang",),
    why="one engine on all nine chips, with its kernel named: FlashAttention on Ampere and Hopper, "
        "TRT-LLM's on Blackwell, FlashInfer on workstation parts; TRT-LLM's own rows do not say "
        "which of several kernels ran",
    select={k: ATTENTION_SELECT[k] for k in ("bf16", "bf16-kv-fp8")},
    shape=_attention_shape, family=_attention_family,
    family_means="12 or 40 heads, or 4 KV heads", rules=(_stalled("step", ATTENTION_KEYS),),
)  # fmt: skip

HALF = 2.0
NCCL_NAMES = {"all_reduce": "all_reduce", "all_gather": "all_gather",
              "reduce_scatter": "reduce_scatter", "all_to_all": "alltoall"}  # fmt: skip


def _collective_shape(operation: str) -> Any:
    """Return the reader of one operation: message sizes in the table count elements."""

    def shape(frame: pd.DataFrame, chip: Any, dtype: str) -> CollectiveShape:
        size, chips = _columns(frame, "message_size", "num_gpus")
        width = np.where(frame["nccl_dtype"] == "int8", 1.0, HALF)
        link, host = chip.link_bandwidth, chip.through_host
        return CollectiveShape(size * width, chips, link, operation, host)

    return shape


def _custom_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> CollectiveShape:
    """Return bf16 all-reduces: message sizes in the table count elements."""
    size, chips = _columns(frame, "message_size", "num_gpus")
    link, host = chip.link_bandwidth, chip.through_host
    return CollectiveShape(size * HALF, chips, link, "all_reduce", host)


NCCL_KEYS = ("num_gpus", "message_size", "nccl_dtype")
CUSTOM_KEYS = NCCL_KEYS[:2]
TRAY = 4  # chips that GB300 has under one host


def _chip_count_family(frame: pd.DataFrame) -> Any:
    """Return rows of the largest chip count."""
    return frame["num_gpus"] == frame["num_gpus"].max()


NCCL_TABLES = tuple(
    Dataset(
        op=operation, table="nccl", keys=NCCL_KEYS, load="message_size",
        rules=(_stalled("message_size", NCCL_KEYS),),
        backends=("nccl",), why="nccl-tests, the library itself", tuner="nccl",
        select={"any": {"op_name": name}},
        shape=_collective_shape(operation), family=_chip_count_family,
        family_means="the largest chip count", main_kernel_only=False,
    )
    for operation, name in NCCL_NAMES.items()
)  # fmt: skip
CUSTOM_ALL_REDUCE_TABLE = Dataset(
    op="custom_all_reduce", table="custom_allreduce", keys=CUSTOM_KEYS, load="message_size",
    backends=("trtllm",), why="one-shot and two-shot kernels under CUDA graphs on all chips",
    select={"bf16": {}}, shape=_custom_shape, family=_chip_count_family,
    family_means="the largest chip count", main_kernel_only=False,
    rules=(
        Rule("eager", "`_eager` rows time the host, not the kernel",
             lambda f: "kernel_source" not in f
             or ~f["kernel_source"].astype(str).str.endswith("_eager")),
        _stalled("message_size", CUSTOM_KEYS),
        Rule("several trays", "beyond the four chips of a GB300 tray TRT-LLM runs another kernel",
             lambda f: (f["system"] != "gb300") | (f["num_gpus"] <= TRAY)),
    ),
)  # fmt: skip
A2A_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5625, "fp4": 0.5625, "default": 2.0}


def _dispatch_shape(phase: str) -> Any:
    """Return the reader of one phase: partial sums come back in 16 bits whatever was sent."""

    def shape(frame: pd.DataFrame, chip: Any, dtype: str) -> DispatchShape:
        names = ("num_tokens", "hidden_size", "topk", "ep_size")
        width = HALF if phase == "combine" else A2A_BYTES[dtype.split("-")[1]]
        tokens, hidden, topk, chips = _columns(frame, *names)
        return DispatchShape(tokens, hidden, topk, chips, chip.link_bandwidth, width)

    return shape


A2A_KEYS = ("num_tokens", "hidden_size", "topk", "ep_size", "num_experts", "node_num")
A2A_GROUP = ("num_tokens", "hidden_size", "ep_size", "node_num")  # whatever the experts
DISPATCH_TABLES = tuple(
    Dataset(
        op=phase, table="moe_a2a", latency="latency", unit=MICROSECOND,
        keys=A2A_KEYS, load="num_tokens",
        rules=(_stalled("num_tokens", A2A_KEYS), _stalled("hidden_size", A2A_GROUP)),
        backends=("trtllm",),
        why="TRT-LLM's DeepEP port is measured in both modes and all formats",
        select={f"{mode}-{form}": {"comm_backend": f"trtllm_deepep_{mode}", "phase": phase,
                                   "comm_dtype": form}
                for mode in ("ll", "ht") for form in ("bfloat16", "fp8", "nvfp4")},
        shape=_dispatch_shape(phase), family=lambda f: f["hidden_size"] == f["hidden_size"].min(),
        family_means="the smallest hidden size", main_kernel_only=False,
    )
    for phase in ("dispatch", "combine")
)  # fmt: skip


MLA_KEYS = ("batch_size", "isl", "step", "num_heads")
MLA_SELECT = {
    "bf16": {"mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"},
    "bf16-kv-fp8": {"mla_dtype": "bfloat16", "kv_cache_dtype": "fp8"},
}
HELD_MLA_HEADS = (16, 64)


def _mla_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> MlaShape:
    """Return per-chip sizes; in decode `isl` is 1 and `step` tokens are already cached."""
    batch, seq, step, heads = _columns(frame, *MLA_KEYS)
    kv_bytes = 2.0 if dtype == "bf16" else 1.0
    return MlaShape(batch, seq, step + seq, heads, "bf16", kv_bytes, copies=1.0)


MLA_TABLES = tuple(
    Dataset(
        op=op, table=table, keys=MLA_KEYS, load=load, backends=("trtllm", "sglang"),
        tuner="trtllm",
        why="the latent attention operator as each engine calls it",
        select=MLA_SELECT,
        shape=_mla_shape, family=lambda f: f["num_heads"].isin(HELD_MLA_HEADS),
        family_means="16 or 64 heads",
        rules=(_stalled(load, MLA_KEYS),),
    )
    for op, table, load in (("mla_prefill", "context_mla", "isl"),
                            ("mla_decode", "generation_mla", "step"))
)  # fmt: skip

MOE_KEYS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size",
            "moe_ep_size", "distribution")  # fmt: skip
MOE_FORMATS = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
               "w4a16": "int4_wo"}  # fmt: skip
NONGATED_FFN, NONGATED_TOPK = (1856, 2688), 22  # Nemotron-H: squared ReLU, no gate


def _moe_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> MoeShape:
    """Return the busiest rank's load; Nemotron's experts have no gate."""
    tokens, hidden, ffn, topk, experts, tp, ep = _columns(frame, *MOE_KEYS[:-1])
    skew = frame["distribution"].str.extract(r"power_law_([0-9.]+)")[0].astype(float).fillna(0)
    plain = frame["inter_size"].isin(NONGATED_FFN) | (frame["topk"] == NONGATED_TOPK)
    routing = Routing(experts, topk, ep, skew.to_numpy())
    gated = np.where(plain, 0.0, 1.0)
    return route(tokens, hidden, ffn / tp, routing, gated=gated, dtype=dtype)


def _moe_family(frame: pd.DataFrame) -> Any:
    """Return every fourth model shape, in sorted order."""
    model = frame["hidden_size"].astype(str) + "_" + frame["inter_size"].astype(str)
    model = model + "_" + frame["num_experts"].astype(str)
    return model.isin(sorted(model.unique())[::4])


MOE_TABLE = Dataset(
    op="moe", table="moe", keys=MOE_KEYS, load="num_tokens",
    backends=("trtllm", "sglang", "vllm"),
    first="trtllm", group=tuple(key for key in MOE_KEYS if key != "num_tokens"), wider="bf16",
    why="the fused layer; TRT-LLM's grouped GEMM, one named kernel of the widest sweep, so that "
        "its parameters travel (the faster of the others in formats that it has not); a model's "
        "shape, split and distribution of tokens for which that kernel takes over 1.4 times as "
        "long as another engine's, or as any in bf16, is left out: it is not tuned for it",
    select={ours: {"moe_dtype": theirs} for ours, theirs in MOE_FORMATS.items()},
    shape=_moe_shape, family=_moe_family, family_means="every fourth model shape",
    rules=(
        Rule("stalled", "rows over 1.5 times slower than one of the same group with more tokens: "
             "the tuner took another tile", _not_stalled("num_tokens", MOE_KEYS)),
        Rule("group-limited router", "SGLang routes DeepSeek-V3's shape within 4 of 8 groups, so "
             "its `balanced` rows touch half the experts that they claim",
             lambda f: ~((f["backend"] == "sglang") & (f["distribution"] == "balanced")
                         & (f["hidden_size"] == 7168) & (f["num_experts"] == 256))),
    ),
)  # fmt: skip
LEAST_TIME = 5e-4  # milliseconds: below this the table holds a difference of two timings


def _quantise_shape(frame: pd.DataFrame, chip: Any, dtype: str) -> StreamShape:
    """Return a cast of m × k 16-bit numbers to FP8, or another pass if its bytes are given."""
    if {"read", "write"} <= set(frame):
        return StreamShape(*_columns(frame, "m", "k", "read", "write"))
    return quantise(*_columns(frame, "m", "k"))


QUANTISE_TABLE = Dataset(
    op="quantise", table="scale_matrix", keys=("m", "k", "read", "write"), load="m",
    backends=("vllm",),
    why="static_scaled_fp8_quant: one kernel, on every chip", select={"fp8": {}},
    shape=_quantise_shape, family=lambda f: f["k"].isin(HELD_SIZES),
    family_means="k of 5120 or 7168",
    rules=(Rule("differences", "times under 0.5 us are not of a kernel",
                lambda f: f["latency"] > LEAST_TIME),),
)  # fmt: skip
GDN_KEYS = ("batch_size", "seq_len", "num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
GDN_KERNELS = {
    "gdn_chunk": "chunk_gated_delta_rule",
    "gdn_recurrent": "fused_recurrent_gated_delta_rule_packed_decode",
    "conv1d": "causal_conv1d_fn",
    "conv1d_update": "causal_conv1d_update",
}
ONE_TOKEN = ("gdn_recurrent", "conv1d_update")


def _linear_shape(op: str) -> Any:
    """Return the reader of one kernel: updates take one token per sequence."""

    def shape(frame: pd.DataFrame, chip: Any, dtype: str) -> LinearShape:
        batch, seq, keys, values, wide, deep = _columns(frame, *GDN_KEYS)
        seq = np.ones_like(seq) if op in ONE_TOKEN else np.maximum(seq, 1)
        scan = 0.0 if op.startswith("conv") else 1.0
        return LinearShape(batch, seq, keys, values, wide, deep, scan)

    return shape


def _linear_family(frame: pd.DataFrame) -> Any:
    """Return rows of the middle count of value heads."""
    heads = sorted(frame["num_v_heads"].unique())
    return frame["num_v_heads"] == heads[len(heads) // 2]


BEHIND = 1.2  # beyond any noise


def _not_behind_twin(frame: pd.DataFrame) -> Any:
    """Return the rows that do not take BEHIND times as long as on H100, or are not H200's."""
    if "h200_sxm" not in set(frame["system"]):
        return np.ones(len(frame), bool)
    keys = [*GDN_KEYS, "kernel_source"]
    twin = uncleaned("gdn", "h100_sxm", "sglang").groupby(keys, as_index=False)["latency"].median()
    both = frame[keys].merge(twin, on=keys, how="left")
    return ~(frame["latency"].to_numpy() > BEHIND * both["latency"].to_numpy())


GDN_TABLES = tuple(
    Dataset(
        op=op, table="gdn", keys=GDN_KEYS, load="batch_size", backends=("sglang",),
        why="the widest sweep; four kernels under their own names",
        select={"bf16": {"kernel_source": kernel}}, shape=_linear_shape(op),
        family=_linear_family, family_means="the middle count of value heads",
        rules=(Rule("behind its twin", "H200, H100's die with more bandwidth, takes up to 4.9 "
                    "times as long over much of the largest work here: rows over 1.2 times slower",
                    _not_behind_twin),),
    )
    for op, kernel in GDN_KERNELS.items()
)  # fmt: skip
DATASETS = {
    table.op: table
    for table in (GEMM_TABLE, PREFILL_TABLE, DECODE_TABLE, *NCCL_TABLES, CUSTOM_ALL_REDUCE_TABLE,
                  *DISPATCH_TABLES, *MLA_TABLES, MOE_TABLE, QUANTISE_TABLE, *GDN_TABLES)
}  # fmt: skip
