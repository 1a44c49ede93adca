"""What a checkpoint file is, told from its names, and where its entries go in a backbone.

Beside the backbones' own files there are initialisations, which cover a part: BERT, a Video Swin or Swin, a ViT or DeiT.
Their names are those of the original code or of Hugging Face. BERT's are brought to `bert.`, `cls.`, Swin's and ViT's to the
original ones, and then put under the part of the backbone that has their layers; which one that is, each backbone's naming.py says.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from meltr_ray.video.backbones.named import BACKBONES
from meltr_ray.video.backbones.naming import Naming, State
from meltr_ray.video.backbones.settings import BackboneConfig

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


def naming_of(backbone: str) -> Naming:
    return BACKBONES[backbone].naming()


def title_of(kind: str) -> str:
    return INITIALISATIONS[kind].title if kind in INITIALISATIONS else naming_of(kind).title


def kind_of(state: State) -> str | None:
    """What the file is that `state` was read from, the name of a backbone or of an initialisation; None: neither."""
    beginnings = {name.split(".")[0] for name in state}
    ends = {name.split(".")[-1] for name in state}
    own = next((backbone for backbone in BACKBONES if naming_of(backbone).is_own(beginnings)), None)
    if own is not None:
        return own
    if any(re.fullmatch(r"(bert\.)?embeddings\.word_embeddings\.weight", name) for name in state):
        return "bert"
    if "cls_token" in ends:
        return "vit"
    return "swin" if "relative_position_bias_table" in ends else None


def width_of(state: State, kind: str) -> int:
    """Width of the transformers that `state` holds; 0 if the entry that tells it is missing."""
    beginning = INITIALISATIONS[kind].width if kind in INITIALISATIONS else naming_of(kind).width
    pattern = rf"(backbone|swin|vit|deit|bert)?\.?(layer)?{re.escape(beginning)}(weight|gamma)"
    return next((len(x) for name, x in state.items() if re.fullmatch(pattern, name)), 0)


def translate(state: State, kind: str, config: BackboneConfig) -> tuple[State, list[str], list[str]]:
    """(entries under `config`'s backbone's names, names of what goes nowhere, new names of what was changed to fit).

    `kind` is the backbone's own or one of its `parts`. What nothing is known about keeps its name.
    """
    naming = config.naming()
    state = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): x for name, x in state.items()}
    if kind == config.name:
        return naming.own(state), [], []
    known, places, placed, unused = INITIALISATIONS[kind], naming.parts[kind].places, {}, []
    for name, x in known.original(state).items():
        place = next((beginning for beginning in places if name.startswith(beginning)), "-")
        if re.match(known.never_used, name) or (place == "-" and re.match(known.not_used, name)):
            unused.append(name)
        else:
            placed[places.get(place, "") + name.removeprefix(place)] = x
    fitted = naming.fit(placed, config)
    return fitted, unused, [name for name, x in fitted.items() if x is not placed.get(name)]


def original_bert(state: State) -> State:
    """All under `bert.` and `cls.`, with the words' scores, which some files leave out since they are the word embeddings."""
    state = {re.sub(r"^(?=embeddings\.|encoder\.|pooler\.)", "bert.", name): x for name, x in state.items()}
    if "cls.predictions.bias" not in state:
        return state
    words = {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"]}
    return words | {name: x for name, x in state.items() if name != "cls.predictions.decoder.bias"}


def original_vision(state: State) -> State:
    return join_attention({original_name(name): x for name, x in state.items()})


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


@dataclass(frozen=True)
class Initialisation:
    """Files of a model that is a part of backbones."""

    title: str
    width: str
    """Beginning of the names of an entry as long as the transformers are wide."""
    not_used: str
    """Entries that a backbone may have a place for: matched at the beginning of a name."""
    never_used: str
    """Entries that no backbone has a place for."""
    original: Callable[[State], State]
    """Brings them to their original names."""


INITIALISATIONS = {
    "bert": Initialisation("BERT", "embeddings.LayerNorm.", r"bert\.pooler\.|bert\.encoder\.|cls\.seq_relationship\.",
                           r".*\.position_ids$", original_bert),
    "swin": Initialisation("Swin", "norm.", "", r"head\.|cls_head\.|classifier\.|pooler\.|.*\.attn_mask$", original_vision),
    "vit": Initialisation("ViT", "norm.", "", r"(head|head_dist|pre_logits|pooler|classifier|cls_classifier|distillation_classifier)\.",
                          original_vision),
}  # fmt: skip
"""Kinds of files beside the backbones' own."""
