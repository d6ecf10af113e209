"""Time attention by its initial weights: the original's can't learn, ours can.

docs/time_attention.md says what that is worth in training.
"""
import pytest
import torch
import torch.nn.functional as F

from egokit.config.schema import ModelConfig, OptimConfig
from egokit.model.egovlp import EgoVLP
from egokit.train import optim

WIDTH, FRAMES, CLIPS = 32, 4, 4
STARTS = ("released", "zero_output")
OPTIM = OptimConfig(lr=3e-3, weight_decay=0.1)


def untrained(time_init: str, dtype=torch.float32) -> EgoVLP:
    torch.manual_seed(0)
    model = EgoVLP(ModelConfig(image_size=32, patch_size=8, frames=FRAMES, width=WIDTH, heads=2, depth=2,
                               num_fused_layers=1, vocab_size=50, max_positions=20, dropout=0.0,
                               projection="linear16", time_init=time_init))
    model.reset_parameters()
    return model.to(dtype)


def clips(dtype=torch.float32) -> torch.Tensor:
    """Return normalised frames (2 * CLIPS, T, 3, 32, 32): noise, and the same backwards.

    Only the order of frames tells the two apart.
    """
    forwards = torch.randn(CLIPS, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    return torch.cat([forwards, forwards.flip(1)])


def train(model: EgoVLP, inspect=lambda step: None, steps: int = 40) -> list[float]:
    """Train both encoders on 'forwards or backwards?', and return the losses of the steps.

    Args:
        inspect: called with the step's number between the gradients and the update.
    """
    frames, label, losses = clips(next(model.parameters()).dtype), torch.arange(2).repeat_interleave(CLIPS), []
    ids = torch.tensor([[0, 5, 6, 2]]).expand(len(label), -1)
    mask = torch.ones_like(ids)
    optimizer = optim.optimizer(model, OPTIM)
    for step in range(steps):
        words = model.text_trunk({"input_ids": ids, "attention_mask": mask})
        fused = model.fuse(model.fusion_trunk(frames), words, mask, FRAMES, "itm")
        loss = (F.cross_entropy(model.video_projection(model.video(frames))[:, :2], label)
                + F.cross_entropy(model.itm_from_states(*fused), label))
        loss.backward()
        inspect(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def time_layers(model: EgoVLP) -> list:
    return [block.time for block in model.video.blocks]


def rank(matrix: torch.Tensor) -> int:
    """Return the number of singular values above a hundredth of the largest."""
    sizes = torch.linalg.svdvals(matrix.detach())
    return int((sizes > 0.01 * sizes[0]).sum())


@pytest.mark.parametrize("time_init", STARTS)
def test_at_the_start_a_clip_passes_time_attention_unchanged(time_init):
    model, without = untrained(time_init), untrained(time_init)
    for time in time_layers(without):
        time.forward = lambda x_BSD, frames: torch.zeros_like(x_BSD)
    assert torch.equal(model.video(clips()), without.video(clips()))


def test_the_released_start_never_learns_and_stays_of_rank_one():
    """q and k stay 0 forever, and v and proj of rank one.

    The gradient of q has k as a factor, and the reverse. Equal rows of v, and equal columns of proj, get equal
    gradients.
    """
    model = untrained("released")
    start = [{name: parameter.clone() for name, parameter in time.named_parameters()} for time in time_layers(model)]

    def inspect(step: int) -> None:
        for time in time_layers(model):
            assert not time.qkv.weight.grad[:2 * WIDTH].any() and not time.qkv.bias.grad[:2 * WIDTH].any(), step

    losses = train(model, inspect)
    # CLS sees order without it: it reads every patch of every frame, with its temporal embedding
    assert losses[-1] < 0.1 * losses[0]
    for time, before in zip(time_layers(model), start, strict=True):
        query_key, value = time.qkv.weight.split([2 * WIDTH, WIDTH])
        assert not query_key.any() and not time.qkv.bias[:2 * WIDTH].any()
        assert (value - before["qkv.weight"][2 * WIDTH:]).abs().max() > 0.01
        assert (time.proj.weight - before["proj.weight"]).abs().max() > 0.01  # both move, and yet
        for equal_rows in (value, time.proj.weight.T):
            assert (equal_rows - equal_rows[0]).abs().max() < 0.01 * equal_rows.abs().max()  # equal but for rounding
            assert rank(equal_rows) == 1


def test_at_the_released_start_rounding_alone_moves_v():
    """The true gradient of v is 0, too.

    What time attention adds is the same in all channels, and the norm behind it subtracts that.
    """
    largest = {}
    for dtype in (torch.float32, torch.float64):
        model = untrained("released", dtype)
        model.video(clips(dtype)).square().sum().backward()
        largest[dtype] = max(time.qkv.weight.grad.abs().max().item() for time in time_layers(model))
        assert not any(time.proj.weight.grad.any() for time in time_layers(model))  # v is 0
        assert model.video.blocks[0].space.qkv.weight.grad.abs().max() > 0.01
    assert largest[torch.float32] < 1e-4 and largest[torch.float64] < 1e-12


def test_zero_output_learns():
    model = untrained("zero_output")
    start = [{name: parameter.clone() for name, parameter in time.named_parameters()} for time in time_layers(model)]

    def inspect(step: int) -> None:
        for time in time_layers(model):
            assert time.proj.weight.grad.any()
            for name, part in zip("qkv", time.qkv.weight.grad.split(WIDTH), strict=True):
                assert part.any() == (step > 0), (name, step)  # it comes through proj, which is 0 at the first step

    losses = train(model, inspect)
    assert losses[-1] < 0.1 * losses[0]
    for time, before in zip(time_layers(model), start, strict=True):
        for part, was in zip(time.qkv.weight.split(WIDTH), before["qkv.weight"].split(WIDTH), strict=True):
            assert (part - was).abs().max() > 1e-3 and rank(part) > 1
        assert rank(time.proj.weight) > 1


@pytest.mark.parametrize("time_init", STARTS)
def test_order_reaches_a_clips_embedding_through_the_temporal_embedding_alone(time_init):
    """However trained, attention over time and space doesn't know which frame came first.

    Embeddings of a clip forwards and backwards become nearly opposite: their difference is 1.7 to 2 times the largest
    entry, for 16 seeds in each of two versions of PyTorch. For an untrained model it is 0.06 to 0.18.
    """
    model, frames = untrained(time_init), clips()
    train(model)
    with torch.no_grad():
        states = model.video(frames)
        assert (states[:CLIPS] - states[CLIPS:]).abs().max() > states.abs().max()
        model.video.temporal_embed.zero_()
        states = model.video(frames)
    assert (states[:CLIPS] - states[CLIPS:]).abs().max() < 1e-4 * states.abs().max()


def test_only_zero_output_can_tell_a_frame_what_another_one_shows():
    """One layer alone is to give every patch what its position shows in the next frame.

    (The first frame follows the last.) From the released start it gives all frames of a position one answer, whose
    error is at least the variance of the right answers over frames: chance, here. From ours it learns where to look.
    """
    answers, losses = {}, {}
    patches_BTND = torch.randn(CLIPS, FRAMES, 16, WIDTH, generator=torch.Generator().manual_seed(2))
    target_BTND = patches_BTND.roll(-1, 1)
    chance = target_BTND.var(1, correction=0).mean().item()
    for time_init in STARTS:
        model = untrained(time_init)
        time = model.video.blocks[0].time
        placed_BTND = patches_BTND + 3 * model.video.temporal_embed.detach()[:, :, None]
        x_BSD = F.pad(placed_BTND.flatten(1, 2), (0, 0, 1, 0))
        optimizer = optim.optimizer(model, OptimConfig(lr=1e-2, weight_decay=0))
        for _ in range(150):
            answers[time_init] = time(x_BSD, FRAMES)[:, 1:].unflatten(1, (FRAMES, 16))
            loss = F.mse_loss(answers[time_init], target_BTND)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses[time_init] = loss.item()
    assert answers["released"].var(1).max() < 1e-8 and losses["released"] >= chance
    assert losses["zero_output"] < 0.5 * chance
