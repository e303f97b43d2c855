"""Multimodal models: which vision tower a config describes; the text part is a decoder as ever.

An image is of the size that its tower takes. Where a tower takes any size, an image is
`ANY_SIZE` pixels square; ``image_size`` in ``vision_config`` says otherwise. Where a tower cuts
an image into tiles, an image is one tile (Llama 4) or all tiles that it pads to (Llama 3.2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from frontends.channels import FeedForward
from frontends.config import Config
from frontends.cross import CrossAttention, GatedCrossLayer
from frontends.decoder import Decoder, Layer, fold
from frontends.encoder import Encoder, EncoderAttention, EncoderLayer, Neck, Stack
from frontends.mixers import SelfAttention
from frontends.vision import Chain, Patches, Projector
from frontends.writer import NormKind
from hardware import SpecError

# pixels along an image's side where the tower takes any: what Gemma 3 scales every image to
ANY_SIZE = 896
_COLOURS = 3
_SIDES = 2
# ids of the embedding that the head does not have: mllama's image placeholder, padded to 8
_MLLAMA_EXTRA = 8


@dataclass(frozen=True)
class Multimodal:
    """A family: how tower and decoder come together, and the kind of the text part.

    *text* is the ``model_type`` of the text part, whatever its own table says; if it is empty the
    table must say.
    """

    join: Callable[[Decoder, Config, Config], Decoder]
    text: str = ""

    def text_config(self, config: Config) -> Config:
        """The config of the text part: its own table, or the same one (Qwen2-VL)."""
        own = table(config, "text_config")
        values = dict(own.values if own else config.values)
        if self.text:
            values["model_type"] = self.text
        if own and config.values.get("tie_word_embeddings") is not None:
            values["tie_word_embeddings"] = config.values["tie_word_embeddings"]
        return Config(values, config.name)

    def __call__(self, decoder: Decoder, config: Config) -> Decoder:
        """*decoder* with the tower that *config* describes; as it is if it describes none."""
        vision = table(config, "vision_config")
        return self.join(decoder, config, vision) if vision else decoder


def table(config: Config, key: str) -> Config | None:
    """The nested config *key*, if there is one.

    Raises
    ------
    SpecError : it is not a table.
    """
    values = config.values.get(key)
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise SpecError(f"{config.name}: {key!r} must be a table, not {values!r}")
    return Config(values, f"{config.name}, {key}")


def _attention(vision: Config, width: int, key: str = "num_attention_heads") -> EncoderAttention:
    heads = vision.positive(key)
    if width % heads:
        raise SpecError(f"{vision.name}: a width of {width} is not a multiple of {heads} heads")
    return EncoderAttention(heads=heads, head_dim=width // heads)


def _ffn(size: int, gated: bool = False, bias: bool = True) -> FeedForward:
    return FeedForward(ffn=size, gated=gated, bias=bias, label="vision")


def _see(decoder: Decoder, stem: Patches, stacks: tuple[Stack, ...], *necks: Neck) -> Decoder:
    """*decoder* with a tower whose features take places in its sequence."""
    tower = Encoder(
        label="vision",
        stem=stem,
        stacks=stacks,
        necks=necks,
        weight_class="vision",
        given="images",
    )
    return replace(decoder, encoder=tower)


def _pixels(vision: Config, frames: int = 1) -> int:
    """Numbers in a patch."""
    channels = [key for key in ("num_channels", "in_channels", "in_chans") if key in vision.values]
    colours = vision.positive(channels[0]) if channels else _COLOURS
    return colours * frames * vision.positive("patch_size") ** 2


def _patches(vision: Config, merge: int = 1, size: int | None = None) -> int:
    """Patches of an image; whole groups of *merge* × *merge* of them."""
    side = vision.positive("image_size", size) // vision.positive("patch_size")
    if side < merge:
        raise SpecError(f"{vision.name}: an image of {side} × {side} patches has too few of them")
    return (side // merge * merge) ** 2


def _qwen2(decoder: Decoder, _: Config, vision: Config) -> Decoder:
    """Qwen2-VL (Wang et al. 2024): rotary places, two by two patches become a token."""
    width, merge = vision.positive("embed_dim"), vision.positive("spatial_merge_size")
    layer = EncoderLayer(
        attention=replace(_attention(vision, width, "num_heads"), rotary=True),
        ffn=_ffn(vision.positive("mlp_ratio") * width),
    )
    return _see(
        decoder,
        _qwen_stem(vision, width),
        (Stack(count=vision.positive("depth"), layer=layer),),
        Projector(merge=merge**2, hidden=(merge**2 * width,), bias=True, norm="patch"),
    )


def _qwen_stem(vision: Config, width: int) -> Patches:
    return Patches(
        model=width,
        pixels=_pixels(vision, vision.positive("temporal_patch_size")),
        patches=_patches(vision, vision.positive("spatial_merge_size"), ANY_SIZE),
    )


def _qwen2_5(decoder: Decoder, _: Config, vision: Config) -> Decoder:
    """Qwen2.5-VL (Bai et al. 2025): most layers attend within windows."""
    width, merge = vision.positive("hidden_size"), vision.positive("spatial_merge_size")
    attention = replace(_attention(vision, width, "num_heads"), rotary=True)
    whole = EncoderLayer(
        attention=attention,
        ffn=_ffn(vision.positive("intermediate_size"), gated=True),
        norm="rms",
    )
    window = (vision.positive("window_size") // vision.positive("patch_size")) ** 2
    near = replace(whole, attention=replace(attention, window=window))
    everywhere = vision.indices("fullatt_block_indexes")
    layers = [whole if i in everywhere else near for i in range(vision.positive("depth"))]
    return _see(
        decoder,
        _qwen_stem(vision, width),
        runs(layers),
        Projector(merge=merge**2, hidden=(merge**2 * width,), bias=True, norm="patch", kind="rms"),
    )


def runs(layers: list[EncoderLayer]) -> tuple[Stack, ...]:
    """Layers as stacks of equal neighbours."""
    return tuple(Stack(count=len(list(same)), layer=layer) for layer, same in groupby(layers))


def _qwen3(decoder: Decoder, _: Config, vision: Config) -> Decoder:
    """Qwen3-VL: learned and rotary places; features of some layers go in beside the last's."""
    width, merge = vision.positive("hidden_size"), vision.positive("spatial_merge_size")
    layer = EncoderLayer(
        attention=replace(_attention(vision, width, "num_heads"), rotary=True),
        ffn=_ffn(vision.positive("intermediate_size")),
    )
    places = (("places", vision.positive("num_position_embeddings")),)
    last = Projector(merge=merge**2, hidden=(merge**2 * width,), bias=True, norm="patch")
    deep = vision.indices("deepstack_visual_indexes")
    return _see(
        decoder,
        replace(_qwen_stem(vision, width), bias=True, tables=places),
        (Stack(count=vision.positive("depth"), layer=layer),),
        last,
        *[replace(last, norm="merged")] * len(deep),
    )


def _clip(vision: Config, frames: int = 1, *, classes: int = 1, patches: int = 0) -> Patches:
    """The stem of CLIP (Radford et al. 2021): a class token, learned places, a norm."""
    patches = patches or _patches(vision)
    return Patches(
        model=vision.positive("hidden_size"),
        pixels=_pixels(vision, frames),
        patches=patches,
        classes=classes,
        tables=(("places", patches + classes),) if classes else (),
        norm=True,
    )


def _clip_stack(vision: Config, *, rotary: bool = False, final_norm: bool = True) -> Stack:
    attention = _attention(vision, vision.positive("hidden_size"))
    layer = EncoderLayer(
        attention=replace(attention, rotary=rotary),
        ffn=_ffn(vision.positive("intermediate_size")),
    )
    return Stack(count=vision.layers(), layer=layer, final_norm=final_norm)


def _llava(decoder: Decoder, config: Config, vision: Config) -> Decoder:
    """LLaVA 1.5 (Liu et al. 2023): CLIP and two products."""
    projector = Projector(
        hidden=(decoder.model,),
        bias=config.flag("multimodal_projector_bias", True),
        tower_classes=config.values.get("vision_feature_select_strategy") == "full",
    )
    return _see(decoder, _clip(vision), (_clip_stack(vision),), projector)


def _llama4(decoder: Decoder, _: Config, vision: Config) -> Decoder:
    """Llama 4: CLIP with rotary places; patches are shuffled together, then two products more."""
    ratio = vision.values.get("pixel_shuffle_ratio", 1)
    if not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise SpecError(f"{vision.name}: 'pixel_shuffle_ratio' is {ratio!r}, not in (0, 1]")
    hidden = (vision.positive("projector_input_dim"), vision.positive("projector_output_dim"))
    projector = Projector(merge=round(1 / ratio**2), hidden=hidden)
    return _see(decoder, _clip(vision), (_clip_stack(vision, rotary=True),), projector)


def _minimax(decoder: Decoder, config: Config, vision: Config) -> Decoder:
    """MiniMax-M3: CLIP's layers on rotary places; projected before and after patches merge."""
    compression = table(config, "img_token_compression_config")
    if compression is None:
        raise SpecError(f"{config.name}: 'img_token_compression_config' is missing")
    merge = compression.positive("spatial_merge_size") ** 2
    patches = config.positive("image_seq_length") * merge
    frames = compression.positive("temporal_patch_size")
    first = Projector(hidden=(config.positive("projector_hidden_size"),), bias=True)
    return _see(
        decoder,
        _clip(vision, frames, classes=0, patches=patches),
        (_clip_stack(vision, rotary=True, final_norm=False),),
        Chain(projectors=(first, replace(first, merge=merge))),
    )


def _kimi(decoder: Decoder, _: Config, vision: Config) -> Decoder:
    """Kimi K2.5: MoonViT (learned and rotary places), two by two patches become a token.

    Kimi K3's has no biases, RMS norms, and heads wider than its model; the tensors of its
    projector (``patchmergerv2``) are not published in a library, and taken to be K2.5's.
    """
    width, side = vision.positive("vt_hidden_size"), vision.indices("merge_kernel_size")
    if len(side) != _SIDES or side[0] != side[1] or not side[0]:
        raise SpecError(f"{vision.name}: 'merge_kernel_size' is {list(side)}, not a square's")
    inner = vision.positive("qkv_hidden_size", width)
    attention = _attention(vision, inner, "vt_num_attention_heads")
    biased, biases = vision.flag("attn_bias", True), vision.flag("linear_bias", True)
    kind: NormKind = "rms" if vision.word("norm_type") == "rmsnorm" else "layer"
    layer = EncoderLayer(
        attention=replace(attention, rotary=True, bias=biased, out_bias=biased),
        ffn=_ffn(vision.positive("vt_intermediate_size"), bias=biases),
        norm=kind,
    )
    rows = vision.positive("init_pos_emb_height") * vision.positive("init_pos_emb_width")
    stem = Patches(
        model=width,
        pixels=_pixels(vision),
        patches=_patches(vision, side[0], ANY_SIZE),
        bias=vision.flag("patch_embed_proj_bias", True),
        tables=(("places", rows),),
    )
    stack = Stack(count=vision.positive("vt_num_hidden_layers"), layer=layer, final_norm=True)
    merge = side[0] ** 2
    projector = Projector(
        merge=merge, hidden=(merge * width,), bias=biases, norm="patch", kind=kind
    )
    return _see(decoder, stem, (stack,), projector)


def _gemma3(decoder: Decoder, config: Config, vision: Config) -> Decoder:
    """Gemma 3 (2025): SigLIP, whose patches are averaged to a fixed number of tokens."""
    patches, tokens = _patches(vision), config.positive("mm_tokens_per_image")
    if patches % tokens:
        raise SpecError(f"{config.name}: {patches} patches cannot be averaged to {tokens} tokens")
    stem = Patches(
        model=vision.positive("hidden_size"),
        pixels=_pixels(vision),
        patches=patches,
        bias=True,
        tables=(("places", patches),),
    )
    projector = Projector(pool=patches // tokens, norm="patch", kind="rms")
    return _see(decoder, stem, (_clip_stack(vision),), projector)


def _gemma4(decoder: Decoder, config: Config, vision: Config) -> Decoder:
    """Gemma 4: gated layers with four norms; patches are averaged, then standardised."""
    width, pool = vision.positive("hidden_size"), vision.positive("pooling_kernel_size") ** 2
    attention = replace(
        _attention(vision, width), bias=False, out_bias=False, rotary=True, qk_norm=True
    )
    layer = EncoderLayer(
        attention=attention,
        ffn=_ffn(vision.positive("intermediate_size"), gated=True, bias=False),
        norm="rms",
        post_norm=True,
    )
    stem = Patches(
        model=width,
        pixels=_pixels(vision),
        patches=config.positive("vision_soft_tokens_per_image") * pool,
        # one table for each of the two directions
        tables=(("places", 2 * vision.positive("position_embedding_size")),),
    )
    stack = Stack(count=vision.layers(), layer=layer)
    return _see(decoder, stem, (stack,), Projector(pool=pool, standard=vision.flag("standardize")))


def _mllama(decoder: Decoder, config: Config, vision: Config) -> Decoder:
    """Llama 3.2 Vision: some of the decoder's layers attend to the image instead of the text."""
    text = table(config, "text_config") or config
    crossing = set(text.indices("cross_attention_layers"))
    layers = [layer for group in decoder.groups for layer in group.layers * group.count]
    layers = [_crossing(layer) if i in crossing else layer for i, layer in enumerate(layers)]
    taps = len(vision.indices("intermediate_layers_indices")) + 1
    width = vision.positive("hidden_size")
    if vision.positive("vision_output_dim") != taps * width:
        raise SpecError(
            f"{vision.name}: 'vision_output_dim' {vision.positive('vision_output_dim')} is not "
            f"'hidden_size' {width} × {taps} layers of 'intermediate_layers_indices' and the last"
        )
    tower = Encoder(
        label="vision",
        stem=_tiles(vision, width),
        stacks=_mllama_stacks(vision, width),
        necks=(Projector(taps=taps, bias=True, tower_classes=True),),
        weight_class="vision",
        given="images",
        into="attention",
    )
    return replace(decoder, groups=fold(layers), encoder=tower, extra_tokens=_MLLAMA_EXTRA)


def _tiles(vision: Config, width: int) -> Patches:
    """Tiles of an image, each with a class token, its places and its place among the tiles."""
    tiles, each = vision.positive("max_num_tiles"), _patches(vision)
    shapes = (len(vision.values.get("supported_aspect_ratios", ())) + 1) * tiles
    return Patches(
        model=width,
        pixels=_pixels(vision),
        patches=tiles * each,
        classes=tiles,
        tables=(
            ("places", each + 1),
            ("tile_places", shapes * (each + 1)),
            ("tiles_before", shapes),
            ("tiles_after", shapes),
        ),
        scalars=("places_gate", "before_gate", "after_gate"),
        norm=True,
    )


def _mllama_stacks(vision: Config, width: int) -> tuple[Stack, ...]:
    attention = replace(_attention(vision, width, "attention_heads"), bias=False, out_bias=False)
    layer = EncoderLayer(attention=attention, ffn=_ffn(vision.positive("intermediate_size")))
    local = Stack(count=vision.layers(), layer=layer, final_norm=True)
    overall = replace(layer, gated=True)
    return local, Stack(count=vision.positive("num_global_layers"), layer=overall)


def _crossing(layer: object) -> Layer:
    """The layer that attends to the image in place of a layer that attends to the text."""
    if not isinstance(layer, Layer) or not isinstance(layer.mixer, SelfAttention):
        raise SpecError(f"a cross-attention layer cannot take the place of {layer}")
    own = layer.mixer
    mixer = CrossAttention(
        heads=own.heads, kv_heads=own.kv_heads, head_dim=own.head_dim, qk_norm=True
    )
    return GatedCrossLayer(mixer=mixer, channel=layer.channel)


MULTIMODAL: dict[str, Multimodal] = {
    "qwen2_vl": Multimodal(_qwen2, "qwen2"),
    "qwen2_5_vl": Multimodal(_qwen2_5, "qwen2"),
    "qwen3_vl": Multimodal(_qwen3, "qwen3"),
    "qwen3_vl_moe": Multimodal(_qwen3, "qwen3_moe"),
    "qwen3_5": Multimodal(_qwen3, "qwen3_5_text"),
    "qwen3_5_moe": Multimodal(_qwen3, "qwen3_5_moe_text"),
    "llava": Multimodal(_llava),
    "mllama": Multimodal(_mllama, "llama"),
    "llama4": Multimodal(_llama4, "llama4_text"),
    "gemma3": Multimodal(_gemma3, "gemma3_text"),
    "gemma4": Multimodal(_gemma4, "gemma4_text"),
    "kimi_k25": Multimodal(_kimi, "kimi_k2"),
    "kimi_k3": Multimodal(_kimi, "kimi_linear"),
    "minimax_m3_vl": Multimodal(_minimax, "minimax_m3"),
}
