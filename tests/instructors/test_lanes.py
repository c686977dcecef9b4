"""Forwards that several pictures share: whose rows come back to whom, what fails alone, and what company changes."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from instructors.pipelines import lanes, sharing, streams
from instructors.pipelines.lanes import SharedForward, Sharing
from instructors.pipelines.sharing import UNET, DecodeForward, TextForward
from instructors.pipelines.streams import Stream
from instructors.task import Padding
from tests.instructors import tiny

FAST, REPRODUCIBLE = Padding(), Padding(fixed_rows=4)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def begin(*works: Callable[[], Any]) -> list[Stream]:
    """Streams that wait for their first forward."""
    begun = [Stream(work) for work in works]
    for stream in begun:
        stream.step()
    return begun


def step(*waiting: Stream) -> None:
    """One forward of all of them."""
    assert waiting[0].lane is not None
    assert all(stream.lane is waiting[0].lane for stream in waiting)
    waiting[0].lane.step(waiting)


def answers(*over: Stream) -> list[Any]:
    for stream in over:
        if stream.error is not None:
            raise stream.error
    assert all(stream.done for stream in over)
    return [stream.value for stream in over]


class Counted(nn.Module):
    """Adds its timestep and a residual to each row; remembers how many rows it saw, and takes so many at most."""

    def __init__(self, rows_fit: int = 1000) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.rows_fit = rows_fit

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        extra: tuple[torch.Tensor, ...] | None = None,
        mode: str = "plain",
        return_dict: bool = True,
    ) -> Any:
        self.rows.append(sample.shape[0])
        if sample.shape[0] > self.rows_fit:
            raise MemoryError
        if torch.isnan(sample).any():
            raise ValueError("not a number")
        timesteps = torch.as_tensor(timestep).to(sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
        result = sample + timesteps + (extra[0] if extra is not None else 0)
        return {"sample": result} if return_dict else (result,)


COUNTED = Sharing(per_row={"timestep": ()}, optional=frozenset({"extra"}))


def ask(shared: SharedForward, value: float, timestep: Any, rows: int = 2, **more: Any) -> Callable[[], Any]:
    return lambda: shared(torch.full((rows, 3), value), timestep, **more)


# Rows


@pytest.mark.parametrize("padding", [FAST, REPRODUCIBLE])
def test_each_gets_its_own_rows_back(padding: Padding) -> None:
    module = Counted()
    shared = SharedForward(module.forward, COUNTED, padding)
    waiting = begin(ask(shared, 1, 10), ask(shared, 2, torch.tensor(20), 1), ask(shared, 3, torch.tensor([30, 31])))
    step(*waiting)
    first, second, third = (answer["sample"][:, 0].tolist() for answer in answers(*waiting))
    assert (first, second, third) == ([11, 11], [22], [33, 34])
    assert module.rows == ([5] if padding is FAST else [4, 4])


def test_a_forward_of_fixed_rows_has_one_memory_layout() -> None:
    """An encoder may answer in another, and kernels choose by it."""
    layouts: list[bool] = []

    def forward(sample: torch.Tensor, timestep: Any) -> Any:
        layouts.append(sample.is_contiguous())
        return (sample,)

    shared = SharedForward(forward, COUNTED, REPRODUCIBLE)
    plain = torch.randn(3, 3, 8, 8)
    other = plain.to(memory_format=torch.channels_last)
    for samples in ([plain], [other], [plain, other]):  # three rows: what is added to fill up may have their layout
        waiting = begin(*(lambda sample=sample: shared(sample, 1) for sample in samples))
        step(*waiting)
        assert all(torch.equal(answer, plain) for (answer,) in answers(*waiting))
    assert layouts == [True] * 4


def test_alone_in_fast_the_arguments_are_passed_on_as_they_are() -> None:
    seen: list[Any] = []

    def forward(sample: torch.Tensor, timestep: Any, **kwargs: Any) -> Any:
        seen.append((sample, timestep, kwargs))
        return (sample,)

    shared = SharedForward(forward, COUNTED, FAST)
    sample, timestep, other = torch.ones(2, 3), torch.tensor(7), object()
    [stream] = begin(lambda: shared(sample, timestep, other=other))
    step(stream)
    [(given_sample, given_timestep, kwargs)] = seen
    assert given_sample is sample
    assert given_timestep is timestep
    assert kwargs == {"other": other}


def test_what_one_forward_must_share_makes_the_lane() -> None:
    shared = SharedForward(Counted().forward, COUNTED, FAST)

    def lane(sample: torch.Tensor, timestep: Any = 1, **more: Any) -> Any:
        [stream] = begin(lambda: shared(sample, timestep, **more))
        found = stream.lane
        stream.close()
        return found

    plain = lane(torch.ones(2, 3))
    assert lane(torch.ones(5, 3), torch.tensor(3)) is plain
    assert lane(torch.ones(2, 3), extra=(torch.ones(2, 3),)) is plain
    others = [
        lane(torch.ones(2, 4)),
        lane(torch.ones(2, 3).half()),
        lane(torch.ones(2, 3), mode="other"),
        lane(torch.ones(2, 3), return_dict=False),
    ]
    assert len({id(one) for one in [plain, *others]}) == 5


def test_shapes_that_nobody_asks_for_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LANES_MAX", 3)
    shared = SharedForward(Counted().forward, COUNTED, FAST)
    made = begin(*(lambda width=width: shared(torch.ones(1, width), 1) for width in (1, 2, 3, 1, 4, 1)))
    assert made[0].lane is made[3].lane is made[5].lane  # in use
    assert len(shared._lanes) == 3
    for stream in made:
        step(stream)
    answers(*made)


def test_outside_of_streams_it_computes_at_once() -> None:
    shared = SharedForward(Counted().forward, COUNTED, FAST)
    assert shared(torch.ones(1, 3), 1, return_dict=False)[0].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("padding", [FAST, REPRODUCIBLE])
def test_rows_without_residuals_get_zeros(padding: Padding) -> None:
    unet = tiny._unet(cross_attention_dim=32).eval()
    shared = SharedForward(unet.forward, UNET, padding)
    samples = torch.randn(3, 2, 4, 8, 8)
    text = torch.randn(3, 2, 77, 32)
    down = tuple(torch.randn(2, *shape) for shape in ((8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4)))
    middle = torch.randn(2, 16, 4, 4)
    controls: dict[str, Any] = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def call(index: int) -> Callable[[], Any]:
        more = controls if index == 1 else {}
        return lambda: shared(samples[index], 5 + index, encoder_hidden_states=text[index], return_dict=False, **more)

    alone = []
    for index in range(3):
        [stream] = begin(call(index))
        step(stream)
        alone.append(stream.value[0])
    waiting = begin(*map(call, range(3)))
    step(*waiting)
    for mine, answer in zip(alone, answers(*waiting), strict=True):
        assert torch.allclose(mine, answer[0], atol=1e-5)
        assert padding is FAST or torch.equal(mine, answer[0])
    uncontrolled = unet(samples[1], 6, encoder_hidden_states=text[1], return_dict=False)[0]
    assert not torch.allclose(uncontrolled, alone[1], atol=1e-3)  # the residuals did something


# What goes wrong


def test_a_call_that_fails_fails_alone() -> None:
    module = Counted()
    shared = SharedForward(module.forward, COUNTED, FAST)
    waiting = begin(*(ask(shared, float("nan") if number == 2 else float(number), 1) for number in range(6)))
    step(*waiting)
    assert [type(stream.error) for stream in waiting] == [type(None), type(None), ValueError] + [type(None)] * 3
    assert [stream.value["sample"][0, 0].item() for stream in waiting if stream.error is None] == [1, 2, 4, 5, 6]
    assert waiting[0].lane is None
    assert module.rows[0] == 12


def test_where_memory_runs_out_the_rows_are_halved_and_stay_so() -> None:
    module = Counted(rows_fit=5)
    shared = SharedForward(module.forward, COUNTED, FAST)
    waiting = begin(*(ask(shared, number, 1) for number in range(8)))
    lane = waiting[0].lane
    assert lane is not None
    step(*waiting)
    assert [answer["sample"][0, 0].item() for answer in answers(*waiting)] == list(range(1, 9))
    assert module.rows == [16, 8, 4, 4, 8, 4, 4]
    assert lane.rows_max == 4


def test_what_does_not_fit_even_alone_is_out_of_memory() -> None:
    shared = SharedForward(Counted(rows_fit=2).forward, COUNTED, FAST)
    waiting = begin(ask(shared, 1, 1, rows=3), ask(shared, 2, 1, rows=2))
    step(*waiting)
    assert isinstance(waiting[0].error, MemoryError)
    assert waiting[1].value["sample"].shape == (2, 3)


# Company


def test_company_moves_the_last_bits_of_wide_layers_in_fast_and_none_in_reproducible() -> None:
    """Narrow layers hide it: kernels are chosen by size from a certain width on."""
    wide = TimestepEmbedding(320, 1280).eval()
    rows = torch.randn(11, 320)
    draw = random.Random(0)

    def results(padding: Padding) -> list[list[torch.Tensor]]:
        """Of each row: alone, and then in companies of several sizes and orders."""
        shared = SharedForward(wide.forward, Sharing(), padding)
        found: list[list[torch.Tensor]] = [[] for _ in rows]
        companies = [[number] for number in range(11)]
        companies += [draw.sample(range(11), draw.randint(2, 11)) for _ in range(20)]
        for company in companies:
            waiting = begin(*(lambda number=number: shared(rows[number : number + 1]) for number in company))
            step(*waiting)
            for number, answer in zip(company, answers(*waiting), strict=True):
                found[number].append(answer)
        return found

    for alone, *others in results(REPRODUCIBLE):
        assert others
        assert all(torch.equal(alone, other) for other in others)
    fast = results(FAST)
    for row, (alone, *others) in zip(rows, fast, strict=True):
        assert torch.equal(alone, wide(row[None]))
        assert all(torch.allclose(alone, other, atol=1e-4) for other in others)
    if all(torch.equal(alone, other) for alone, *others in fast for other in others):
        pytest.skip("this machine's kernels do not depend on the number of rows, so nothing was put to the test")


# Text


class TextModel(nn.Module):
    """A stand-in for a text encoder: counts its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.table = nn.Embedding(100, 8)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> dict[str, torch.Tensor]:
        self.rows += input_ids.shape[0]
        return {"last_hidden_state": self.table(input_ids)}


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> tuple[TextModel, TextForward]:
    monkeypatch.setattr(streams, "_begun", 0)  # whatever other tests left unfinished
    model = TextModel()
    return model, TextForward("text_encoder", model.forward, FAST, lambda mixes: lanes.nullcontext())


def encode(forward: TextForward, token: int) -> Callable[[], torch.Tensor]:
    return lambda: forward(torch.full((1, 77), token))["last_hidden_state"]


def finish(*waiting: Stream) -> list[Any]:
    for stream in waiting:
        if not stream.done:
            step(stream)
    return answers(*waiting)


def test_a_text_is_encoded_once(text: tuple[TextModel, TextForward]) -> None:
    model, forward = text
    for _ in range(3):
        [result] = finish(*begin(encode(forward, 1)))
        assert torch.equal(result, model.table(torch.full((1, 77), 1)))
    assert model.rows == 1
    finish(*begin(encode(forward, 2)))
    assert model.rows == 2


def test_a_text_encoded_in_company_is_encoded_again_for_who_is_alone(text: tuple[TextModel, TextForward]) -> None:
    """Its last bits are those of the company; alone, a picture equals stock."""
    model, forward = text
    together = begin(encode(forward, 1), encode(forward, 2))
    step(*together)
    assert model.rows == 2
    again = begin(encode(forward, 1))
    assert not again[0].done
    finish(*again)
    assert model.rows == 3
    finish(*begin(encode(forward, 1)))
    assert model.rows == 3  # now exact
    held = begin(lambda: forward(torch.full((1, 77), 3)), encode(forward, 2))
    assert held[1].done  # in company the company's will do
    finish(*held)
    assert model.rows == 4


def test_the_text_memory_is_bounded_in_bytes(
    text: tuple[TextModel, TextForward], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 77 * 8 * 4
    monkeypatch.setattr(sharing, "TEXT_CACHE_BYTES", 3 * one)
    model, forward = text
    for token in (1, 2, 3, 1, 4):
        finish(*begin(encode(forward, token)))
    assert (model.rows, forward._nbytes, len(forward._known)) == (4, 3 * one, 3)
    finish(*begin(encode(forward, 1)))  # used since
    assert model.rows == 4
    finish(*begin(encode(forward, 2)))  # the longest unused
    assert model.rows == 5


def test_the_text_memory_keeps_no_more_than_its_own_rows(text: tuple[TextModel, TextForward]) -> None:
    _, forward = text
    together = begin(*(encode(forward, token) for token in range(8)))
    step(*together)
    for result, nbytes, _ in forward._known.values():
        assert result["last_hidden_state"].untyped_storage().nbytes() == nbytes


# Decoding in half precision


@pytest.fixture(scope="module")
def half_vae() -> Any:
    """A decoder that overflows half precision where a latent is large, and only there."""
    torch.manual_seed(0)
    vae = tiny._vae(force_upcast=False).eval()
    vae.decoder.conv_in.weight.data.mul_(100)
    vae.decoder.conv_norm_out.register_forward_pre_hook(_overflow)
    return vae.half()


def _overflow(_module: Any, inputs: tuple[torch.Tensor]) -> None:
    """What activations beyond half precision's largest number do to what comes after."""
    if inputs[0].dtype == torch.float16:
        large = inputs[0].abs().amax((1, 2, 3)) > 1000
        inputs[0][large] = float("inf")


def decode(forward: DecodeForward, latents: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: forward(latents, return_dict=False)[0]


@pytest.mark.parametrize("padding", [FAST, REPRODUCIBLE])
def test_only_pictures_that_overflow_are_decoded_again(half_vae: Any, padding: Padding) -> None:
    forward = DecodeForward(half_vae, padding)
    fine = torch.randn(1, 4, 8, 8).half()
    large = fine * 300
    assert not torch.isfinite(half_vae.decode(large)[0]).all()
    alone = finish(*begin(decode(forward, fine)))[0]
    [saved] = finish(*begin(decode(forward, large)))
    assert torch.isfinite(saved).all()
    full = tiny_in_full(half_vae, large)
    assert torch.allclose(saved.float(), full, atol=0.02, rtol=0.01)
    together = begin(decode(forward, fine), decode(forward, large), decode(forward, fine))
    step(*together)
    first, second, third = answers(*together)
    assert torch.isfinite(second).all()
    for picture in (first, third):  # a neighbour's trouble changes nothing
        assert torch.equal(picture, alone) if padding is REPRODUCIBLE else torch.allclose(picture, alone, atol=0.02)
    assert half_vae.dtype == torch.float16


def tiny_in_full(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    vae.float()
    try:
        return vae.decode(latents.float(), return_dict=False)[0]
    finally:
        vae.half()


def test_a_decoder_that_asks_for_it_is_always_run_in_full() -> None:
    vae = tiny._vae(force_upcast=True).eval().half()
    forward = DecodeForward(vae, FAST)
    latents = torch.randn(1, 4, 8, 8).half()
    [picture] = finish(*begin(decode(forward, latents)))
    assert torch.equal(picture, tiny_in_full(vae, latents))
    assert vae.dtype == torch.float16


def test_decodes_are_bounded_by_pixels() -> None:
    forward = DecodeForward(tiny._vae().eval(), FAST)
    rows: Sequence[int] = []
    for side in (8, 64, 128, 256):
        waiting = begin(decode(forward, torch.zeros(1, 4, side, side)))
        assert waiting[0].lane is not None
        rows = [*rows, waiting[0].lane.rows_max]
        waiting[0].close()
    assert rows == [16, 4, 1, 1]


def test_a_fixed_number_of_rows_is_no_more_than_fit_in_a_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny._vae().eval()
    plain, rows = vae.decode, []

    def counted(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(z.shape[0])
        return plain(z, *args, **kwargs)

    monkeypatch.setattr(vae, "decode", counted)
    forward = DecodeForward(vae, REPRODUCIBLE)
    monkeypatch.setattr(sharing, "DECODE_LATENTS", 2 * 8 * 8)
    for side in (4, 8, 16):
        finish(*begin(decode(forward, torch.zeros(1, 4, side, side))))
    assert rows == [4, 2, 1]
