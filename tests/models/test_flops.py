"""FLOPs counted by torch against closed forms, in which each product of a step is written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from vlpipe.models.flops import FlopMeter, attention_backward, count, flops_per_sample, peak_flops
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.systems.image_text.blip.config import TOKENS, BlipConfig
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.systems.images.mae import Mae
from vlpipe.models.teachers import Ema
from vlpipe.models.tokenizer import SPECIAL, Tokenizer
from vlpipe.stages.train.build import Net

B, L, GRID, PATCH = 4, 10, 4, 8
N = GRID**2  # patches
T = 1 + N  # with the class token


def linear(rows: int, width_in: int, width_out: int) -> int:
    return 2 * rows * width_in * width_out


def attention(queries: int, keys: int, width: int) -> int:
    """Scores, then the weighted sum of the values; heads share the width."""
    return 2 * 2 * queries * keys * width


def mlp(rows: int, width: int) -> int:
    return linear(rows, width, 4 * width) + linear(rows, 4 * width, width)


def layer(tokens: int, width: int) -> int:
    """Queries, keys and values; attention; output; feed-forward."""
    qkv = linear(tokens, width, 3 * width)
    return qkv + attention(tokens, tokens, width) + linear(tokens, width, width) + mlp(tokens, width)


def last_layer(tokens: int, width: int, queries: int) -> int:
    """Only position 0 leaves it; `queries`: for how many positions its code projects queries."""
    qkv = linear(queries, width, width) + linear(tokens, width, 2 * width)
    return qkv + attention(1, tokens, width) + linear(1, width, width) + mlp(1, width)


def patches(width: int) -> int:
    return linear(N, 3 * PATCH * PATCH, width)


def text_of(num: int, length: int) -> Stream:
    mask = torch.arange(length)[None] < (length - torch.arange(num)[:, None])
    return Stream(torch.randint(7, 60, (num, length)).masked_fill(~mask, 0), mask)


def batch_of(views: Mapping[str, Mapping[str, Stream]] | None = None, **streams: Stream) -> Batch:
    return Batch(streams=streams, same=torch.arange(B), views=views or {})


def pixels() -> Stream:
    return Stream(torch.randn(B, 3, GRID * PATCH, GRID * PATCH))


def net_of(model: Any, *objectives: Any, view: str = "", teachers: Mapping[str, Ema] | None = None) -> Net:
    return Net(model, [(1.0, view, one) for one in objectives], teachers).train()


def test_clip() -> None:
    from vlpipe.models.objectives.infonce import InfoNce

    v, t, embed = 32, 24, 16
    model = Clip(
        vocab_size=60,
        end=5,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        vision_width=v,
        vision_layers=3,
        vision_heads=4,
        text_width=t,
        text_layers=2,
        text_heads=3,
        embed_dim=embed,
    )
    image = 2 * layer(T, v) + last_layer(T, v, queries=T) + linear(1, v, embed)
    words = 2 * layer(L, t) + linear(1, t, embed)
    loss = 2 * linear(1, embed, B)  # each image with all texts, each text with all images
    first = patches(v)  # backward: no gradient of pixels
    batch = batch_of(image=pixels(), text=text_of(B, L))
    assert flops_per_sample(net_of(model, InfoNce()), batch) == 3 * (image + words + loss) + 2 * first


def test_mae() -> None:
    from vlpipe.models.objectives.pixel_mse import PixelMse

    kept, width, decoder = 4, 32, 24
    model = Mae(
        image_size=GRID * PATCH,
        patch_size=PATCH,
        width=width,
        layers=3,
        heads=4,
        decoder_width=decoder,
        decoder_layers=2,
        decoder_heads=3,
    )
    order = torch.stack([torch.randperm(N) for _ in range(B)])
    keep = order[:, :kept].sort(1).values
    masked = torch.ones(B, N, dtype=torch.bool).scatter(1, keep, False)
    hidden = Stream(pixels().data, extra={"keep": keep}, target={"masked": masked})
    batch = batch_of({"hidden": {"image": hidden}}, image=pixels())
    encoder = 3 * layer(1 + kept, width)  # of the visible patches alone
    rest = linear(1 + kept, width, decoder) + 2 * layer(T, decoder) + linear(N, decoder, 3 * PATCH * PATCH)
    first = linear(kept, 3 * PATCH * PATCH, width)  # no gradient of pixels
    found = flops_per_sample(net_of(model, PixelMse(), view="hidden"), batch)
    assert found == 3 * (encoder + rest) + 2 * first


V, D, E, VOCAB, QUEUE = 32, 24, 16, 60, 12  # BLIP: vision, text and embedding width


def blip_net() -> Net:
    from vlpipe.models.objectives.itc import Itc
    from vlpipe.models.objectives.itm import Itm
    from vlpipe.models.objectives.lm import Lm

    tokenizer = Tokenizer.from_tokens([*SPECIAL, *(f"[unused{i}]" for i in range(VOCAB - len(SPECIAL)))])
    config = BlipConfig(
        **{name: getattr(tokenizer, name) for name in ("vocab_size", *TOKENS)},
        image_size=GRID * PATCH,
        patch_size=PATCH,
        vision_width=V,
        vision_layers=3,
        vision_heads=4,
        text_width=D,
        text_layers=2,
        text_heads=3,
        max_text_length=L,
        embed_dim=E,
    )
    objectives = (Itc(queue_size=QUEUE, alpha_ramp_epochs=0), Itm(negatives="momentum"), Lm())
    net = net_of(Blip(config), *objectives, teachers={"ema": Ema()})
    rows = [torch.randn(QUEUE, E) for _ in range(2)]
    net.objectives[0].queue.push(rows, torch.arange(QUEUE))  # full, as after the first steps
    return net


def test_blip() -> None:
    text = text_of(B, L)
    assert text.mask is not None
    targets = int(text.mask[:, 1:].sum())  # next tokens that the caption loss asks for
    image = 3 * layer(T, V)
    words = layer(L, D) + last_layer(L, D, queries=1)  # only [CLS] leaves the last layer
    student = image + linear(1, V, E) + words + linear(1, D, E)
    teacher = (
        patches(V) + 2 * layer(T, V) + last_layer(T, V, queries=T) + linear(1, V, E) + words + linear(1, D, E)
    )
    similar = 2 * linear(1, E, B + QUEUE)  # in both directions, to the batch and the queue
    draw = 2 * linear(1, E, B)  # similarities by which ITM's negatives are drawn, without gradient
    keys = 2 * linear(T, V, 2 * D)  # of cross-attention in 2 layers, once per picture
    crossing = linear(L, D, D) + attention(L, T, D) + linear(L, D, D)  # queries, attention, output
    crossing_first = linear(1, D, D) + attention(1, T, D) + linear(1, D, D)
    match = 3 * (words + crossing + crossing_first + linear(1, D, 2)) + keys  # a pair and its two negatives
    decoder = 2 * (layer(L, D) + crossing) + keys
    predict = B * decoder + linear(targets, D, D) + linear(targets, D, VOCAB)
    with_gradient = B * (student + match) + predict
    # similarities to teachers' features: the gradient of the student's alone
    losses = B * (2 * similar + similar + draw)
    wanted = 3 * with_gradient + B * (2 * patches(V) + teacher) + losses
    assert flops_per_sample(blip_net(), batch_of(image=pixels(), text=text)) == wanted / B


def test_counting_changes_nothing() -> None:
    net = blip_net()
    net.model.text.requires_grad_(False)
    net.train()  # frozen parts stay in evaluation mode
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = {name: module.training for name, module in net.named_modules()}
    meter = FlopMeter(net)
    batch = batch_of(image=pixels(), text=text_of(B, L))
    generator = torch.get_rng_state()
    meter.add([batch, batch], torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert meter.total == 2 * B * flops_per_sample(net, batch)


def test_a_meter_counts_each_task_by_its_own_losses() -> None:
    net = blip_net()
    net.tasks = {"contrast": [("", 0)], "caption": [("", 2)]}
    streams = {"image": pixels(), "text": text_of(B, L)}
    batches = [Batch(streams=streams, same=torch.arange(B), task=task) for task in ("contrast", "caption")]
    meters = [FlopMeter(net) for _ in range(3)]
    for meter, given in zip(meters, ([batches[0]], [batches[1]], batches), strict=True):
        meter.add(given, torch.device("cpu"))
    each = [meter.total for meter in meters]
    assert each[0] != each[1]
    assert each[2] == each[0] + each[1]


def test_the_backward_pass_of_fused_attention_counts_as_two_forward_passes() -> None:
    heads, q, k, v = 3, torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    forward = count(lambda: (q @ k.transpose(-1, -2)) @ v)
    assert forward == 2 * attention(5, 7, heads * 8)
    assert attention_backward(q.shape, q.shape, k.shape, v.shape, True, is_causal=False) == 2 * forward


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", None),  # not in the table: another rate than the H200's
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_are_of_the_card_itself(card: str, tflops: float | None) -> None:
    assert peak_flops(card) == (None if tflops is None else tflops * 1e12)
