"""Compare VIOLET with the authors' classes: python -m tests.video.parity.violet <checkout>/violet [--base [TASK ...]] [--store]

Run from the root of this repository; <checkout> is one of github.com/mlvlab/MELTR. Their files import transformers (4.30 was
used), torchvision, cv2, pandas and tqdm; where a package can't be installed, a stand-in on PYTHONPATH does, since all they
take here of torchvision is transforms.Normalize, and of cv2 nothing. Pre-trained files are not needed.

Prints a table of relative errors on the toy model of tests/video/test_violet.py, in float64 and float32: names, shapes and
counts, each intermediate, each loss, each loss's gradient, masking from equal draws. `--base`: also at base size, two clips of
five frames (see `compare_precisions`; 10 GB). `--store`: writes the numbers that tests/video/test_violet.py reads.
"""

from __future__ import annotations

import argparse
import ast
import functools
import random
import sys
import types
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meltr_ray.video.backbones.violet import block_masking
from meltr_ray.video.backbones.violet.inputs import VioletBatch
from meltr_ray.video.backbones.violet.losses import pair_numbers, violet_losses
from meltr_ray.video.backbones.violet.model import VIOLET_TASKS, Violet
from meltr_ray.video.backbones.violet.settings import VioletConfig
from tests.video import test_violet as toy
from tests.video.parity.allinone import Quantities, compare_precisions, errors, gradients, print_precisions, relative, shake
from tests.video.settings import vector

FILES = ("lib", "utils", "meltr", "agent", "video_swin", "dataset", "model", "main_retrieval", "main_qamc", "main_qaoe")
TASK_FILES = {"retrieval": "main_retrieval", "multiple_choice": "main_qamc", "open_ended": "main_qaoe"}
CLASSES = {"retrieval": "Retrieval", "multiple_choice": "QAMC", "open_ended": "QAOE"}
COUNTER = "enc_txt.emb_txt.position_ids"
"""A buffer that older versions of transformers save: positions 0, 1, 2, ..."""
BASE_WORDS, BASE_ANSWERS = 30522, 1000
"""At base size: the vocabulary of bert-base-uncased, and a number of answers."""
SETTINGS = dict.fromkeys(("lr", "decay", "gamma", "meltr_lr", "meltr_decay", "max_grad_norm"), 0.1)


class Resize(ast.NodeTransformer):
    """Puts other sizes in place of the numbers that the published files have in their code."""

    def __init__(self, sizes: dict[int, int]):
        self.sizes = sizes

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(self.sizes.get(node.value, node.value)) if type(node.value) is int else node


def load_published(checkout: Path, config: VioletConfig) -> dict[str, types.ModuleType]:
    """Their modules, with the sizes of `config`; under their own names in `sys.modules`, since they import one another."""
    sizes = {768: config.hidden_size, 8192: config.num_visual_tokens, 32: config.patch_pixels, 14: config.max_rows}
    modules = {}
    for name in FILES:
        tree = ast.parse((checkout / f"{name}.py").read_text())
        if name == "model" or name.startswith("main"):
            tree = ast.fix_missing_locations(Resize(sizes).visit(tree))
        modules[name] = sys.modules[name] = types.ModuleType(name)
        exec(compile(tree, name, "exec"), modules[name].__dict__)
    swin = modules["video_swin"].SwinTransformer3D
    modules["model"].SwinTransformer3D = functools.partial(
        swin, embed_dim=config.swin_width, depths=list(config.swin_depths), num_heads=list(config.swin_heads),
        window_size=config.swin_window,
    )  # fmt: skip
    # as torch asks today
    modules["video_swin"].checkpoint = types.SimpleNamespace(checkpoint=functools.partial(checkpoint, use_reentrant=False))
    return modules


@contextmanager
def without_files(config: VioletConfig, num_words: int) -> Iterator[None]:
    """Their constructors as if pre-trained files were there, and without a GPU."""
    bert = transformers.BertConfig(
        vocab_size=num_words, hidden_size=config.hidden_size, num_hidden_layers=config.cross_layers,
        num_attention_heads=config.num_heads, intermediate_size=config.feed_forward_size,
        max_position_embeddings=config.max_position_embeddings,
    )  # fmt: skip
    with ExitStack() as stack:
        for cls in (transformers.BertModel, transformers.BertForMaskedLM):
            stack.enter_context(mock.patch.object(cls, "from_pretrained", lambda *_, cls=cls: cls(bert)))
        stack.enter_context(mock.patch.object(torch, "load", lambda *_, **__: {}))
        swin = sys.modules["video_swin"].SwinTransformer3D
        stack.enter_context(mock.patch.object(swin, "load_state_dict", lambda *_: None))
        for cls in (Tensor, nn.Module):
            stack.enter_context(mock.patch.object(cls, "cuda", lambda self: self))
        yield


def make_published(modules: dict[str, types.ModuleType], config: VioletConfig, task: str, num_words: int, num_answers: int) -> nn.Module:
    with without_files(config, num_words):
        cls = getattr(modules[TASK_FILES[task]], f"VIOLET_{CLASSES[task]}")
        return cls(num_answers) if task == "open_ended" else cls()


def published_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if name != COUNTER}


def load_ours(theirs: nn.Module, ours: Violet) -> None:
    """Put our weights into their model; names and shapes have to be equal."""
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(result.missing_keys) <= {COUNTER} and not result.unexpected_keys, result


def run_published(
    modules: dict[str, types.ModuleType], theirs: nn.Module, task: str, batch: VioletBatch
) -> tuple[dict[str, Tensor], Tensor]:
    """Intermediates by our names, and losses (T,) in our order, of their model and training step."""
    found: dict[str, Any] = {}
    cross: list[Tensor] = []

    def keep(name: str, module: nn.Module, pick: Any = lambda output: output) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:  # a value returned would take the output's place
            found.setdefault(name, pick(output))

        return module.register_forward_hook(hook)

    def keep_cross(_: nn.Module, __: Any, output: Any) -> None:
        cross.append(output["last_hidden_state"])

    hooks = [keep("swin", theirs.enc_img.swin), keep("text", theirs.enc_txt), keep("outputs", theirs)]
    hooks += [keep("video", theirs.enc_img, lambda output: output[0]), theirs.trsfr.register_forward_hook(keep_cross)]
    own_answers = () if task == "retrieval" else (batch.answers,)
    with without_files(toy.toy_config(), toy.WORDS):
        agent = getattr(modules[TASK_FILES[task]], f"Agent_{CLASSES[task]}")(SETTINGS, theirs, None)
        losses = agent.step(batch.frames, batch.text_ids, batch.text_mask.long(), *own_answers, batch.word_labels,
                            batch.patch_labels, batch.masked_text_ids)  # fmt: skip
    for hook in hooks:
        hook.remove()
    words, patches, matching, *answer, _ = found.pop("outputs")
    positions = found["video"].size(1)
    found["swin"] = found["swin"].permute(0, 2, 3, 4, 1)
    crossed = cross[0] if task == "retrieval" else cross[1]
    found["crossed"] = torch.cat((crossed[:, positions:], crossed[:, :positions]), dim=1)
    found["pairs"] = cross[-1][:, positions]
    found |= {"word scores": words, "patch scores": patches, "matching scores": matching}
    if answer:
        found["answer scores"] = answer[0]
    return found, torch.stack(losses)


def run_ours(model: Violet, task: str, batch: VioletBatch) -> tuple[dict[str, Tensor], Tensor]:
    """The same of our methods; scores at all positions, where the losses take the masked ones."""
    with torch.no_grad():
        found = our_passes(model, task, batch)
    return found, vector(violet_losses(model, batch, toy.LOSSES[task]))


def our_passes(model: Violet, task: str, batch: VioletBatch) -> dict[str, Tensor]:
    ids, mask, masked_ids = (x.flatten(0, -2) for x in (batch.text_ids, batch.text_mask, batch.masked_text_ids))
    found = {}
    hook = model.enc_img.swin.register_forward_hook(lambda _, __, output: found.update(swin=output))
    found["video"], found["text"] = model.encode_video(batch.frames), model.embed_text(ids)
    hook.remove()
    repeated = found["video"].repeat_interleave(len(ids) // len(batch.frames), 0)
    found["crossed"] = model.encode_cross(model.embed_text(masked_ids), mask, repeated)
    words, patches = found["crossed"].split((ids.size(1), repeated.size(1)), dim=1)
    found |= {"word scores": model.predict_words(words), "patch scores": model.predict_patches(patches)}
    numbers = pair_numbers(model.config, batch)
    first = {
        name: model.encode_pairs(found["text"], mask, found["video"], x.flatten() % len(ids), x.flatten() // len(ids))
        for name, x in numbers.items()
    }
    found["pairs"] = first["matching"]
    matching = model.match(first["matching"]) / model.config.matching_temperature
    found["matching scores"] = matching.view(len(batch.frames), -1)
    if task != "retrieval":
        found["answer scores"] = model.choose_answer(first["answer"].unflatten(0, (len(batch.frames), -1)))
    return found


def masking_differs(modules: dict[str, types.ModuleType], task: str, seed: int) -> int:
    """Entries that differ of masked frames, masked ids and labels, when our functions get the draws of theirs."""
    batch, grid = toy.toy_batch(task), (toy.FRAMES, toy.ROWS, toy.COLUMNS)
    frames = torch.from_numpy(np.random.default_rng(seed).random(batch.frames.shape)) + 0.1
    tokens = np.random.default_rng(seed).integers(11, size=(toy.CLIPS, *grid))
    integers, uniforms = [], []

    def record(draw: Any, kept: list) -> Any:
        def call(*arguments: int) -> Any:
            kept.append(draw(*arguments))
            return kept[-1]

        return call

    np.random.seed(seed)
    torch.manual_seed(seed)
    patches = np.pad(tokens.reshape(toy.CLIPS, toy.FRAMES, -1), ((0, 0), (0, 0), (1, 0)), constant_values=-1)
    randint = mock.patch.object(np.random, "randint", record(np.random.randint, integers))
    rand = mock.patch.object(torch, "rand", record(torch.rand, uniforms))
    with without_files(toy.toy_config(), toy.WORDS), randint, rand:
        agent = getattr(modules[TASK_FILES[task]], f"Agent_{CLASSES[task]}")(SETTINGS, nn.Linear(1, 1), None)
        theirs = agent.masking(frames.clone(), batch.text_ids.clone(), torch.from_numpy(patches.reshape(toy.CLIPS, -1)))
    draws = np.array(integers).reshape(toy.CLIPS, toy.FRAMES, 2, 3)  # sizes, then starts
    blocks = block_masking.cover(draws[:, :, 1], draws[:, :, 0], grid)
    ids = batch.text_ids.numpy()
    drawn, waiting = np.zeros(ids.shape, dtype=bool), iter(uniforms)
    for row in range(toy.CLIPS):  # one draw each, and again while it hits nothing
        while not drawn[row].any():
            drawn[row] = (next(waiting).numpy() < 0.15) & ~np.isin(ids[row], (0, toy.CLS, toy.SEP))
    if task == "multiple_choice":
        hidden, labels = block_masking.read_as_options(ids, drawn, toy.MASK)
    else:
        hidden, labels = np.where(drawn, toy.MASK, ids), np.where(drawn, ids, -1)
    ours = (block_masking.hide_pixels(frames.numpy(), blocks), hidden, labels, block_masking.label_patches(tokens, blocks))
    return sum(int((a != b.numpy()).sum()) for a, b in zip(ours, theirs, strict=True))


def compare(modules: dict[str, types.ModuleType], task: str, dtype: torch.dtype) -> dict[str, float]:
    """Rows of the table: quantity -> relative error."""
    config = toy.toy_config()
    ours = toy.toy_violet(task).to(dtype)
    theirs = make_published(modules, config, task, toy.WORDS, toy.ANSWERS).to(dtype).eval()
    load_ours(theirs, ours)
    batch = toy.toy_batch(task)
    batch.frames = batch.frames.to(dtype)
    expected, their_losses = run_published(modules, theirs, task, batch)
    got, losses = run_ours(ours, task, batch)
    assert got.keys() == expected.keys() and sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    rows = {name: relative(got[name].flatten(), value.flatten()) for name, value in expected.items()}
    for name, loss, their_loss in zip(toy.LOSSES[task], losses, their_losses, strict=True):
        rows[f"loss {name}"] = relative(loss, their_loss)
        rows |= errors(f"gradient {name}", gradients(loss, ours), gradients(their_loss, theirs))
    return rows


def compare_swin(modules: dict[str, types.ModuleType], case: str, dtype: torch.dtype) -> dict[str, float]:
    ours, theirs, pixels = swin_case(modules, case, dtype)
    got, expected = ours(pixels), theirs(pixels.transpose(1, 2)).permute(0, 2, 3, 4, 1)
    rows = {f"swin {case}": relative(got, expected)}
    both = gradients(got.square().mean(), ours), gradients(expected.square().mean(), theirs)
    return rows | errors(f"gradient swin {case}", *both)


def swin_case(modules: dict[str, types.ModuleType], case: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Tensor]:
    window, (frames, rows, columns) = toy.SWINS[case]
    ours = toy.toy_swin(window).to(dtype)
    theirs = modules["video_swin"].SwinTransformer3D(embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=window)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.to(dtype).eval(), toy.toy_pixels(1, frames, 3, rows, columns).to(dtype)


def base_batch(task: str, config: VioletConfig, dtype: torch.dtype) -> VioletBatch:
    """Two clips; texts of 25 and 11 pieces, for multiple choice two options each, of 25 to 9."""
    generator, is_choice = np.random.default_rng(0), task == "multiple_choice"
    rows = config.image_size // config.patch_pixels
    grid = (config.num_frames, rows, rows)
    lengths = np.array([[25, 9], [11, 20]] if is_choice else [25, 11])[..., None]
    place = np.arange(25)
    ids = np.where(place < lengths, generator.integers(1000, BASE_WORDS, size=(*lengths.shape[:-1], 25)), 0)
    ids = np.where(place == 0, toy.CLS, np.where(place == lengths - 1, toy.SEP, ids))
    hide = block_masking.hide_options if is_choice else block_masking.hide_words
    masked_ids, word_labels = hide(ids, ids < 1000, 0.15, toy.MASK, generator)
    blocks = block_masking.cover(*block_masking.draw_blocks(2, grid, generator), grid)
    frames = block_masking.hide_pixels(generator.random((2, config.num_frames, 3, config.image_size, config.image_size)), blocks)
    tokens = generator.integers(config.num_visual_tokens, size=blocks.shape)
    answers = np.array({"retrieval": [0, 0], "multiple_choice": [1, 0], "open_ended": [7, 912]}[task])
    arrays = (frames, ids, place < lengths, masked_ids, word_labels, block_masking.label_patches(tokens, blocks), answers)
    batch = VioletBatch(*(torch.from_numpy(x) for x in arrays))
    batch.frames = batch.frames.to(dtype)
    return batch


def base_quantities(modules: dict[str, types.ModuleType], task: str, owner: str, dtype: torch.dtype) -> Quantities:
    """Those of base size, in evaluation mode; weights as our constructor draws them, and noise.

    Both recompute activations, theirs in Video Swin: that takes a third off the memory and changes no number.
    """
    config = VioletConfig(size="base", activation_checkpointing=True)
    torch.manual_seed(0)
    model = Violet(config, BASE_WORDS, task, BASE_ANSWERS).eval()
    shake(model)
    run = run_ours
    if owner == "theirs":
        ours, model = model, make_published(modules, config, task, BASE_WORDS, BASE_ANSWERS).eval()
        load_ours(model, ours)
        count = sum(p.numel() for p in model.parameters())
        assert [name for name, _ in sorted(ours.named_parameters())] == [name for name, _ in sorted(model.named_parameters())]
        print(f"{task:16}names and shapes of {len(ours.state_dict())} entries equal, {count} parameters, {dtype}")
        del ours
        run = functools.partial(run_published, modules)
        for module in model.modules():
            module.use_checkpoint = True
    found, losses = run(model.to(dtype), task, base_batch(task, config, dtype))
    yield from ((name, value.detach().flatten()) for name, value in found.items())
    del found
    for name, loss in zip(toy.LOSSES[task], losses, strict=True):
        yield f"loss {name}", loss.detach()
        yield f"gradient {name}", gradients(loss, model)


def store(modules: dict[str, types.ModuleType], checkout: Path) -> None:
    """Names and count at base size, and in float64 the losses and the gradients times probes, all of their classes."""
    numbers = {}
    for task in VIOLET_TASKS:
        theirs = make_published(modules, toy.toy_config(), task, toy.WORDS, toy.ANSWERS).double().eval()
        load_ours(theirs, toy.toy_violet(task).double())
        numbers[f"{task}/losses"] = (losses := run_published(modules, theirs, task, toy.toy_batch(task))[1]).detach().numpy()
        numbers[f"{task}/slopes"] = np.stack([toy.slopes(loss, theirs) for loss in losses])
    for case in toy.SWINS:
        _, theirs, pixels = swin_case(modules, case, torch.float64)
        output = theirs(pixels.transpose(1, 2)).permute(0, 2, 3, 4, 1)
        numbers[f"swin/{case}/output"] = output.detach().numpy()
        numbers[f"swin/{case}/slopes"] = toy.slopes(output.square().mean(), theirs)
    base = VioletConfig(size="base")
    base_modules = load_published(checkout, base)
    for task in VIOLET_TASKS:
        theirs = make_published(base_modules, base, task, BASE_WORDS, BASE_ANSWERS)
        names = [f"{name} {tuple(value.shape)}" for name, value in sorted(published_state(theirs).items())]
        numbers[f"{task}/names"] = np.frombuffer("\n".join(names).encode(), dtype=np.uint8)
        numbers[f"{task}/count"] = sum(p.numel() for p in theirs.parameters())
        del theirs
    np.savez_compressed(toy.REFERENCE, **numbers)
    print(f"{toy.REFERENCE}: {toy.REFERENCE.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--base", nargs="*", metavar="TASK", help="tasks; none given: all three")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    random.seed(0)
    modules = load_published(arguments.checkout, toy.toy_config())
    print(f"{'task':16}{'quantity':28}{'float64':>10}{'float32':>10}")
    for task in VIOLET_TASKS:
        exact, single = (compare(modules, task, dtype) for dtype in (torch.float64, torch.float32))
        for name in exact:
            print(f"{task:16}{name:28}{exact[name]:10.1e}{single[name]:10.1e}")
        print(f"{task:16}masking, entries that differ {sum(masking_differs(modules, task, seed) for seed in range(20))}")
    for case in toy.SWINS:
        exact, single = (compare_swin(modules, case, dtype) for dtype in (torch.float64, torch.float32))
        for name in exact:
            print(f"{'':16}{name:28}{exact[name]:10.1e}{single[name]:10.1e}")
    if arguments.store:
        store(modules, arguments.checkout)
    if arguments.base is not None:
        modules = load_published(arguments.checkout, VioletConfig(size="base"))
        for task in arguments.base or VIOLET_TASKS:
            print_precisions(task, compare_precisions(functools.partial(base_quantities, modules, task)))


if __name__ == "__main__":
    main()
