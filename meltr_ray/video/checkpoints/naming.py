"""What a checkpoint file is, told from its names, and where its entries go in a backbone.

Beside the backbones' own files there are initialisations, which cover a part: BERT, a Video Swin or Swin, a ViT or DeiT.
Their names are those of the original code or of Hugging Face. BERT's are brought to `bert.`, `cls.`, Swin's and ViT's to the
original ones, and then put under the part of the backbone that has their layers.
"""

from __future__ import annotations

import re
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from meltr_ray.video.backbones.allinone import model as allinone
from meltr_ray.video.backbones.allinone.settings import AllInOneConfig
from meltr_ray.video.backbones.settings import BackboneConfig
from meltr_ray.video.backbones.violet.settings import VioletConfig
from meltr_ray.video.backbones.violet.video_swin import PATCH, WindowAttention

State = dict[str, Tensor]

TITLES = {"univl": "UniVL", "violet": "VIOLET", "allinone": "All-in-one", "bert": "BERT", "swin": "Swin", "vit": "ViT"}
"""Kinds of files: the backbones' own, and initialisations."""

VIOLET_HEADS = ("fc.", "fc_vtm.", "fc_mc.", "fc_oe.", "fc_mtm.", "fc_mvm.")
MAY_BE_MISSING = {
    "univl": ("cross.", "decoder.", "cls.", "cls_visual.", "similarity_dense.", "answer_dense.", "score_dense.", "audio."),
    "violet": VIOLET_HEADS,
    "allinone": allinone.MAY_BE_MISSING,
}
"""Parts, by the beginning of their names, that a backbone's own checkpoint may lack, each wholly.

UniVL's fine-tuning for one task saves the parts of that task; its last three are heads of ours. VIOLET's and All-in-one's heads are those of a task."""
MAY_BE_UNEXPECTED = {
    "univl": ("visual.", "cls_visual.", "normalize_video."),
    "violet": (*VIOLET_HEADS, "enc_txt.emb_txt.position_ids"),
    "allinone": allinone.MAY_BE_UNEXPECTED,
}
"""Entries that a checkpoint may have for nothing: heads of other tasks, MELTR's combiner, a counter 0, 1, 2, ..; what reads
frames, where the data has none."""
ANSWER_HEADS = {"univl": (), "violet": ("fc_oe.",), "allinone": ("vqa_classifier.",)}
"""Heads with one row for each answer of a data set: with other answers they are made anew."""

PLACES = {
    ("bert", "univl"): {"bert.": "bert.", "cls.predictions.": "cls.predictions."},
    ("bert", "violet"): {"bert.embeddings.": "enc_txt.emb_txt.", "bert.encoder.": "trsfr.",
                         "cls.predictions.": "fc_mtm.predictions."},
    ("bert", "allinone"): {"bert.embeddings.": "text_embeddings.", "cls.predictions.": "mlm_score."},
    ("swin", "violet"): {"": "enc_img.swin."},
    ("vit", "allinone"): {"": "transformer."},
}  # fmt: skip
"""Where an initialisation goes: beginning of its names -> beginning of the backbone's."""
UNCOVERED = {
    ("bert", "univl"): ("bert.pooler.", "cls."),
    ("bert", "violet"): ("fc_mtm.",),
    ("bert", "allinone"): ("mlm_score.",),
    ("swin", "violet"): (),
    ("vit", "allinone"): ("transformer.temporal_embed",),
}
"""What may be missing there all the same: BERT saved without its heads; a ViT knows no time (published: zeros)."""
NOT_USED = {"bert": r"bert\.pooler\.|bert\.encoder\.|cls\.seq_relationship\.", "swin": "", "vit": ""}
NEVER_USED = {
    "bert": r".*\.position_ids$",
    "swin": r"head\.|cls_head\.|classifier\.|pooler\.|.*\.attn_mask$",
    "vit": r"(head|head_dist|pre_logits|pooler|classifier|cls_classifier|distillation_classifier)\.",
}
"""Entries of an initialisation that a backbone may have, or never has, a place for: matched at the beginning of a name."""

HUGGING_FACE = [
    (r"^(backbone|swin|vit|deit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^encoder\.layers\.", "layers."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(self|attention)\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
]
"""Hugging Face's names of Swin, ViT and DeiT -> the original ones, which no rule changes."""


def kind_of(state: State) -> str | None:
    """The key in `TITLES` of the file that `state` was read from, or None."""
    beginnings = {name.split(".")[0] for name in state}
    ends = {name.split(".")[-1] for name in state}
    if "enc_img" in beginnings:
        return "violet"
    if "visual" in beginnings:
        return "univl"
    if {"transformer", "text_embeddings"} <= beginnings:
        return "allinone"
    if any(re.fullmatch(r"(bert\.)?embeddings\.word_embeddings\.weight", name) for name in state):
        return "bert"
    if "cls_token" in ends:
        return "vit"
    return "swin" if "relative_position_bias_table" in ends else None


def width_of(state: State, kind: str) -> int:
    """Width of the transformers that `state` holds; 0 if the entry that tells it is missing."""
    ends = {"univl": "bert.embeddings.LayerNorm.", "violet": "enc_img.norm.", "allinone": "transformer.norm.",
            "bert": "embeddings.LayerNorm.", "vit": "norm.", "swin": "norm."}  # fmt: skip
    pattern = rf"(backbone|swin|vit|deit|bert)?\.?(layer)?{re.escape(ends[kind])}(weight|gamma)"
    return next((len(x) for name, x in state.items() if re.fullmatch(pattern, name)), 0)


def translate(state: State, kind: str, config: BackboneConfig) -> tuple[State, list[str], list[str]]:
    """(entries under `config`'s backbone's names, names of what goes nowhere, new names of what was changed to fit).

    `kind` is the backbone's own or one that `PLACES` has for it. What nothing is known about keeps its name.
    """
    state = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): x for name, x in state.items()}
    if kind == config.name:
        return (name_answers(state) if kind == "violet" else state), [], []
    if kind == "bert":
        state = complete_bert({re.sub(r"^(?=embeddings\.|encoder\.|pooler\.)", "bert.", name): x for name, x in state.items()})
    else:
        state = join_attention({original_name(name): x for name, x in state.items()})
    places, placed, unused = PLACES[kind, config.name], {}, []
    for name, x in state.items():
        place = next((beginning for beginning in places if name.startswith(beginning)), "-")
        if re.match(NEVER_USED[kind], name) or (place == "-" and re.match(NOT_USED[kind], name)):
            unused.append(name)
        else:
            placed[places.get(place, "") + name.removeprefix(place)] = x
    fitted = fit_swin(placed, config) if isinstance(config, VioletConfig) else placed
    fitted = fit_tables(placed, config) if isinstance(config, AllInOneConfig) else fitted
    return fitted, unused, [name for name, x in fitted.items() if x is not placed.get(name)]


def name_answers(state: State) -> State:
    """VIOLET's own fine-tuning calls every head `fc`: one with several rows is that of open-ended answers, `fc_oe` in MELTR."""
    if len(state.get("fc.3.bias", ())) < 2:
        return state
    return {re.sub(r"^fc\.", "fc_oe.", name): x for name, x in state.items()}


def complete_bert(state: State) -> State:
    """With the words' scores of the masked-language head, which some files leave out since they are the word embeddings."""
    if "cls.predictions.bias" not in state:
        return state
    words = {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"]}
    return words | {name: x for name, x in state.items() if name != "cls.predictions.decoder.bias"}


def original_name(name: str) -> str:
    for pattern, replacement in HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def join_attention(state: State) -> State:
    """Queries, keys and values of each layer, (H, H) or (H,) each, as one `qkv`, (3 H, H) or (3 H,)."""
    joined = {name: x for name, x in state.items() if not re.search(r"\.attn\.(query|key|value)\.", name)}
    for name in [name for name in state if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            joined[name.replace(".query.", ".qkv.")] = torch.cat([state[part] for part in parts])
    return joined


def fit_swin(state: State, config: VioletConfig) -> State:
    """A Swin over images as a Video Swin; one over videos as it is.

    As published with Video Swin (`inflate_weights`): patches are repeated over time and divided by its length, bias tables
    are repeated for each displacement in time, after bicubic interpolation if the windows differ in height or width.
    """
    patches = "enc_img.swin.patch_embed.proj.weight"
    if patches not in state or state[patches].dim() != 4:
        return state
    fitted = dict(state)
    fitted[patches] = state[patches][:, :, None].repeat(1, 1, PATCH[0], 1, 1) / PATCH[0]
    time, *window = config.swin_window
    reach = [2 * length - 1 for length in window]
    index = WindowAttention(1, tuple(config.swin_window), 1, fused=False).relative_position_index
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        table, side = state[name], isqrt(len(state[name]))
        if [side, side] != reach:
            image = table.T.reshape(1, -1, side, side)
            table = F.interpolate(image, reach, mode="bicubic").flatten(2)[0].T
        fitted[name] = table.repeat(2 * time - 1, 1)
        fitted[name.replace("bias_table", "index")] = index.clone()
    return fitted


def fit_tables(state: State, config: AllInOneConfig) -> State:
    """BERT's positions cut to the text length; a ViT's, bilinear, to the number of patches (published: `resize_pos_embed`)."""
    words, places = "text_embeddings.position_embeddings.weight", "transformer.pos_embed"
    fitted = dict(state)
    if words in state and len(state[words]) > config.max_position_embeddings:
        fitted[words] = state[words][: config.max_position_embeddings].clone()
    if places in state and state[places].dim() == 3:
        first, grid = state[places].tensor_split([1 + config.distilled], dim=1)
        side = isqrt(grid.size(1))
        if side**2 == grid.size(1) != config.num_patches:
            image = grid.transpose(1, 2).unflatten(2, (side, side))
            grid = F.interpolate(image, [isqrt(config.num_patches)] * 2, mode="bilinear").flatten(2).transpose(1, 2)
            fitted[places] = torch.cat((first, grid), dim=1)
    return fitted
