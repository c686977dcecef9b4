"""LoRAs beside a model: equal to stock diffusers for one mix, and each row its own where a batch has several."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from instructors import lora_files
from instructors.lora_files import LoraFile
from instructors.pipelines.lora import Adapter, Delta, LoraBase, Mix, mix_key
from protocol.errors import ModelInvalid
from tests.instructors import tiny, tiny_lora

Read = Callable[..., LoraFile]
TWO_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # stock's second LoRA


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp(request.param), request.param)


def pipeline_of(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return pipeline_of(folder)


@pytest.fixture
def base(pipeline: Any) -> LoraBase:
    return LoraBase.of(pipeline, "cpu")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write tensors as a file, and judge it."""

    def make(tensors: dict[str, Any], name: str = "some", **metadata: str) -> LoraFile:
        return lora_files.read(tiny_lora.write(tmp_path / f"{name}.safetensors", tensors, metadata), name)

    return make


def picture(pipeline: Any, **arguments: Any) -> numpy.ndarray:
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 3, "output_type": "np", "height": 16, "width": 16}
    return pipeline("a red circle", negative_prompt="blue", generator=generator, **options, **arguments).images[0]


def picture_with(pipeline: Any, base: LoraBase, mix: tuple[tuple[Adapter, float], ...]) -> numpy.ndarray:
    """The stock pipeline's picture with the rows' LoRAs: with guidance the UNet has two rows, each encoder one."""
    with base.rows("unet", [mix] * 2), base.rows("text_encoder", [mix]):
        if hasattr(pipeline, "text_encoder_2"):
            with base.rows("text_encoder_2", [mix]):
                return picture(pipeline)
        return picture(pipeline)


@pytest.mark.parametrize("layout", tiny_lora.LAYOUTS)
def test_a_picture_with_two_loras_equals_stock_bit_for_bit(folder: Path, read: Read, layout: str) -> None:
    stock, ours = pipeline_of(folder), pipeline_of(folder)
    base, write = LoraBase.of(ours, "cpu"), tiny_lora.LAYOUTS[layout]
    files = [read(write(tiny_lora.layers(ours, rank=rank, seed=rank)), f"r{rank}") for rank in (4, 2)]
    first, second = (base.load(file) for file in files)
    for file in files:
        stock.load_lora_weights(file.path, adapter_name=file.lora_id)
    plain = picture(ours)
    for names, scales in ((["r4"], [0.8]), (["r4", "r2"], [0.7, -0.3]), (["r2", "r4"], [1.1, 0.3])):
        stock.set_adapters(names, scales)
        mix = tuple(({"r4": first, "r2": second}[name], scale) for name, scale in zip(names, scales, strict=True))
        expected = picture(stock)
        assert numpy.array_equal(picture_with(ours, base, mix), expected)
        assert numpy.abs(expected - plain).max() > 0.01  # it does something
    assert numpy.array_equal(picture(ours), plain)


def test_differing_alphas_are_each_layers_own(base: LoraBase, pipeline: Any, read: Read) -> None:
    """Stock diffusers 0.42 gives attention and text encoder layers the most common one, so this asks arithmetic."""
    found = tiny_lora.layers(pipeline)  # of rank 4: alpha / rank is a power of two, and folding it in is exact
    alphas = dict(zip(found, [1.0, 2.0, 8.0] * len(found), strict=False))
    tensors = tiny_lora.kohya(found)
    for name, alpha in zip([name for name in tensors if name.endswith(".alpha")], alphas.values(), strict=True):
        tensors[name] = torch.tensor(alpha)
    folded = {key: (down, up * (alphas[key] / 4)) for key, (down, up) in found.items()}
    ours = picture_with(pipeline, base, ((base.load(read(tensors)), 0.75),))
    expected = picture_with(pipeline, base, ((base.load(read(tiny_lora.peft(folded), "folded")), 0.75),))
    assert numpy.array_equal(ours, expected)


def test_the_settings_that_diffusers_saves_are_honoured(folder: Path, tmp_path: Path) -> None:
    """A LoRA made by peft and written by diffusers, with an alpha that is not the rank."""
    trained, stock, ours = (pipeline_of(folder) for _ in range(3))
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_k", "conv1"], rank_pattern={"conv1": 2}, init_lora_weights=False
    )
    trained.unet.add_adapter(config)
    trained.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(trained.unet),
        unet_lora_adapter_metadata=config.to_dict() | {"target_modules": sorted(config.target_modules)},
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    base, file = LoraBase.of(ours, "cpu"), lora_files.read(path, "saved")
    assert file.config["unet"]["lora_alpha"] == 6
    assert file.ranks == (2, 4)
    stock.load_lora_weights(path, adapter_name="saved")
    stock.set_adapters(["saved"], [0.9])
    expected = picture(stock)
    assert numpy.array_equal(picture_with(ours, base, ((base.load(file), 0.9),)), expected)
    assert not numpy.array_equal(picture(ours), expected)


def test_sdxl_in_the_names_of_its_first_code(tmp_path_factory: pytest.TempPathFactory, read: Read) -> None:
    """kohya trains SDXL on a UNet whose blocks are numbered through."""
    folder = tiny.build(tmp_path_factory.mktemp("sgm"), "sdxl")
    stock, ours = pipeline_of(folder), pipeline_of(folder)
    names = {
        "down_blocks.1.attentions.0.proj_in": "input_blocks_3_1_proj_in",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v": "middle_block_1_transformer_blocks_0_attn2_to_v",
        "down_blocks.1.resnets.0.conv1": "input_blocks_3_0_in_layers_2",
        "up_blocks.0.resnets.1.conv_shortcut": "output_blocks_1_0_skip_connection",
    }
    found = tiny_lora.layers(ours, unet=names, text=())
    tensors: dict[str, Any] = {}
    for (_, name), (down, up) in found.items():
        stem = f"lora_unet_{names[name]}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    base, file = LoraBase.of(ours, "cpu"), read(tensors)
    stock.load_lora_weights(file.path, adapter_name="some")
    stock.set_adapters(["some"], [1.0])
    assert numpy.array_equal(picture_with(ours, base, ((base.load(file), 1.0),)), picture(stock))


@torch.inference_mode()
def forward(pipeline: Any, base: LoraBase, mixes: list[Mix], rows: list[int] | None = None, **options: Any) -> Any:
    """The UNet's answer to rows that are always the same, each with its mix; `rows` picks some of the eight."""
    unet, generator = pipeline.unet, torch.Generator().manual_seed(5)
    sample = torch.randn(8, 4, 8, 8, generator=generator)
    text = torch.randn(8, 77, unet.config.cross_attention_dim, generator=generator)
    added = {"text_embeds": torch.randn(8, 32, generator=generator), "time_ids": torch.ones(8, 6)}
    timesteps = torch.arange(100, 900, 100)
    pick = torch.tensor(range(8) if rows is None else rows)
    if unet.config.addition_embed_type:
        options_of_unet = {"added_cond_kwargs": {name: value[pick] for name, value in added.items()}}
    else:
        options_of_unet = {}
    with base.rows("unet", mixes, **options):
        return unet(sample[pick], timesteps[pick], text[pick], **options_of_unet).sample


@pytest.fixture
def mixes(pipeline: Any, base: LoraBase, read: Read) -> list[Mix]:
    """Eight rows: three adapters of different ranks and targets, several scales, two at once in both orders, none."""
    everything = tiny_lora.layers(pipeline, seed=1)
    linear = tiny_lora.layers(pipeline, unet=tiny_lora.UNET_LAYERS, rank=2, seed=2)
    convolutions = tiny_lora.layers(pipeline, unet=tiny_lora.UNET_CONVS, text=(), rank=8, seed=3)
    a, b, c = (
        base.load(read(tiny_lora.kohya(found), name))
        for name, found in (("a", everything), ("b", linear), ("c", convolutions))
    )
    return [((a, 0.8),), (), ((b, 1.0),), ((a, -0.5), (b, 0.4)), ((b, 0.4), (a, -0.5)), ((c, 1.0),), ((a, 0.8),), ()]


@pytest.mark.parametrize("reproducible", [False, True])
def test_each_row_of_a_mixed_batch_is_what_it_is_alone(
    pipeline: Any, base: LoraBase, mixes: list[Mix], reproducible: bool
) -> None:
    together = forward(pipeline, base, mixes, reproducible=reproducible)
    plain = forward(pipeline, base, [()] * 8)
    for row, mix in enumerate(mixes):
        alone = forward(pipeline, base, [mix], [row], reproducible=reproducible)
        assert torch.allclose(together[row], alone[0], atol=2e-5)
        if mix:
            assert (together[row] - plain[row]).abs().max() > 1e-2
        else:
            assert torch.equal(together[row], plain[row])


def test_reproducible_rows_do_not_depend_on_their_company(pipeline: Any, base: LoraBase, mixes: list[Mix]) -> None:
    expected = [forward(pipeline, base, [mix] * 8, reproducible=True)[row] for row, mix in enumerate(mixes)]
    together = forward(pipeline, base, mixes, reproducible=True)
    assert all(torch.equal(together[row], expected[row]) for row in range(8))


def test_a_caches_key_tells_mixes_apart_where_they_differ(mixes: list[Mix]) -> None:
    ((a, _),), _, ((b, _),), _, _, ((c, _),), *_ = mixes
    assert mix_key("unet", ((a, 0.5), (b, 1.0))) != mix_key("unet", ((b, 1.0), (a, 0.5)))
    assert mix_key("unet", ((a, 0.5),)) != mix_key("unet", ((a, 0.6),))
    assert mix_key("text_encoder", ((a, 0.5), (c, 1.0))) == mix_key("text_encoder", ((a, 0.5), (b, 0.0)))
    assert mix_key("text_encoder", ((c, 1.0),)) == ()


def test_an_adapter_at_scale_0_costs_nothing(base: LoraBase, mixes: list[Mix], pipeline: Any) -> None:
    ((a, _),), *_ = mixes
    with base.rows("unet", [((a, 0.0),)] * 8):
        assert "forward" not in vars(pipeline.unet.conv_in)
    with base.rows("unet", [((a, 0.0),), ((a, 0.1),)]):
        assert "forward" in vars(pipeline.unet.conv_in)


class Wide(nn.Module):
    """Layers of a width at which the number of rows decides how sums are rounded; tiny models hide that."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1280, 1280)
        self.convolution = nn.Conv2d(1280, 320, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.linear(x.flatten(2).transpose(1, 2))
        return self.convolution(flat.transpose(1, 2).reshape(x.shape))


def wide_adapter(name: str, rank: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    deltas = {
        "linear": Delta(random(rank, 1280), random(1280, rank), rank / 2, rank),
        "convolution": Delta(random(rank, 1280, 3, 3), random(320, rank, 1, 1), rank / 2, rank),
    }
    return Adapter(name, name, 0, {"unet": deltas})


@torch.inference_mode()
def test_reproducible_rows_at_width_1280_and_rank_32() -> None:
    torch.manual_seed(0)
    base = LoraBase({"unet": (wide := Wide())}, "cpu", torch.float32)
    a, b = wide_adapter("a", 32, 1), wide_adapter("b", 64, 2)
    x = torch.randn(4, 1280, 4, 4)

    def run(mixes: list[Mix], reproducible: bool) -> torch.Tensor:
        with base.rows("unet", mixes, reproducible):
            return wide(x)

    mix: Mix = ((a, 0.7), (b, 0.3))
    companies: list[list[Mix]] = [[mix] * 4, [mix, (), (), ()], [mix, ((b, 1.0),), ((a, 0.1),), ((b, 0.2), (a, 0.7))]]
    alone = run(companies[0], True)[0]
    assert all(torch.equal(run(company, True)[0], alone) for company in companies)
    assert all(torch.allclose(run(company, False)[0], alone, atol=1e-4) for company in companies)


def test_half_precision_scales_round_as_one_number_does() -> None:
    """A scale for each row is a tensor; it gives what peft's one number gives."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).to(torch.bfloat16)
    delta = Delta(torch.randn(4, 64).bfloat16(), torch.randn(64, 4).bfloat16(), 3.0, 4.0)
    base = LoraBase({"unet": nn.ModuleDict({"layer": layer})}, "cpu", torch.bfloat16)
    adapter, x = Adapter("a", "a", 0, {"unet": {"layer": delta}}), torch.randn(8, 5, 64).bfloat16()
    scales = [0.1 * row - 0.35 for row in range(8)]
    with torch.inference_mode(), base.rows("unet", [((adapter, scale),) for scale in scales]):
        mixed = layer(x)
    for row, scale in enumerate(scales):
        with torch.inference_mode(), base.rows("unet", [((adapter, scale),)] * 8):
            assert torch.equal(layer(x)[row], mixed[row])


def test_the_model_is_as_it_was_after_loads_failures_and_passes(pipeline: Any, base: LoraBase, read: Read) -> None:
    before, attributes = fingerprint(pipeline), [set(vars(module)) for module in pipeline.unet.modules()]
    plain = forward(pipeline, base, [()] * 8)
    good = tiny_lora.kohya(tiny_lora.layers(pipeline))
    bad = {name: tensor for name, tensor in good.items() if "conv_in" not in name}
    bad |= {f"lora_unet_nowhere.lora_{half}.weight": torch.zeros(4, 4) for half in ("down", "up")}
    files, adapters = {True: read(good, "good"), False: read(bad, "bad")}, []
    chance = random.Random(0)
    for _ in range(50):
        match chance.choice(["load", "fail", "drop", "use", "break"]):
            case "load":
                adapters.append(base.load(files[True]))
            case "fail":
                with pytest.raises(ModelInvalid):
                    base.load(files[False])
            case "drop" if adapters:
                adapters.pop(chance.randrange(len(adapters)))
            case "use" if adapters:
                changed = forward(pipeline, base, [((chance.choice(adapters), 1.0),)] * 8)
                assert not torch.equal(changed, plain)
            case "break" if adapters:
                with pytest.raises(ValueError, match="8 rows came to a layer with LoRAs for 2"):
                    forward(pipeline, base, [((chance.choice(adapters), 1.0),)] * 2, list(range(8)))
    assert fingerprint(pipeline) == before
    assert [set(vars(module)) for module in pipeline.unet.modules()] == attributes
    assert torch.equal(forward(pipeline, base, [()] * 8), plain)


def fingerprint(pipeline: Any) -> str:
    """SHA-256 of every weight, by name."""
    digest = hashlib.sha256()
    for part in (pipeline.unet, pipeline.text_encoder):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_a_hook_on_a_layer_runs_within_and_stays(base: LoraBase, mixes: list[Mix], pipeline: Any) -> None:
    layer, calls = pipeline.unet.conv_in, []
    plain = layer.forward

    def hooked(x: torch.Tensor) -> torch.Tensor:  # as libraries that move weights to and fro put in front of a layer
        calls.append(x.shape[0])
        return plain(x)

    expected = forward(pipeline, base, mixes)
    try:
        layer.forward = hooked
        assert torch.equal(forward(pipeline, base, mixes), expected)
        assert calls == [8]
        assert layer.forward is hooked
    finally:
        del layer.forward


def stem_of(tensors: dict[str, Any], part: str) -> str:
    return next(name.partition(".")[0] for name in tensors if part in name)


def shortened(tensors: dict[str, Any]) -> None:
    name = f"{stem_of(tensors, 'to_k')}.lora_down.weight"
    tensors[name] = tensors[name][:, :-1]


def unknown(tensors: dict[str, Any]) -> None:
    tensors["lora_unet_down_blocks_9_conv.lora_down.weight"] = torch.zeros(4, 8)
    tensors["lora_unet_down_blocks_9_conv.lora_up.weight"] = torch.zeros(8, 4)


def additional(tensors: dict[str, Any]) -> None:
    tensors["surprise"] = torch.zeros(2)


def stray_alpha(tensors: dict[str, Any]) -> None:
    tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] = torch.tensor(1.0)


def long_alpha(tensors: dict[str, Any]) -> None:
    tensors[f"{stem_of(tensors, 'to_k')}.alpha"] = torch.ones(2)


def not_a_number(tensors: dict[str, Any]) -> None:
    tensors[f"{stem_of(tensors, 'to_k')}.lora_up.weight"].view(-1)[0] = float("nan")


def endless_alpha(tensors: dict[str, Any]) -> None:
    tensors[f"{stem_of(tensors, 'to_k')}.alpha"] = torch.tensor(float("inf"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shortened, "does not fit the model: unet .*to_k: its shapes are"),
        (unknown, "does not fit the model: unet .*down_blocks.9.*: there is no such layer"),
        (additional, "has a tensor of no known use: 'surprise'"),
        (stray_alpha, "does not fit the model"),
        (long_alpha, "alpha of this LoRA's layer .* is not one number"),
        (not_a_number, "has values that are not numbers"),
        (endless_alpha, "has values that are not numbers"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(
    pipeline: Any, base: LoraBase, read: Read, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in tiny_lora.kohya(tiny_lora.layers(pipeline)).items()}
    damage(tensors)
    plain = forward(pipeline, base, [()] * 8)
    with pytest.raises(ModelInvalid, match=message):
        base.load(read(tensors))
    assert torch.equal(forward(pipeline, base, [()] * 8), plain)


def test_a_lora_for_another_base_model_says_so(read: Read) -> None:
    """The check needs no weights: a model of SD 1's widths, all of them on no device."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, block_out_channels=(32, 64), **TWO_BLOCKS)
    base = LoraBase({"unet": unet}, "cpu", torch.float32)
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"

    def lora(width: int) -> LoraFile:
        return read({f"{name}.lora_A.weight": torch.zeros(4, width), f"{name}.lora_B.weight": torch.zeros(64, 4)})

    base.check(lora(768))
    with pytest.raises(ModelInvalid, match=r"made for SDXL; this model is SD 1\.") as caught:
        base.check(lora(2048))
    assert "its shapes are" in caught.value.details["problems"][0]


def test_a_lora_for_an_encoder_that_the_model_lacks_is_refused(read: Read, pipeline: Any, base: LoraBase) -> None:
    stem = "text_encoder_3.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = tiny_lora.peft(tiny_lora.layers(pipeline))
    tensors |= {f"{stem}.lora_A.weight": torch.zeros(4, 32), f"{stem}.lora_B.weight": torch.zeros(32, 4)}
    with pytest.raises(ModelInvalid, match="unknown tensor text_encoder_3"):
        base.check(read(tensors))
    unet_only = LoraBase({"unet": pipeline.unet}, "cpu", torch.float32)
    with pytest.raises(ModelInvalid, match="the model has no text_encoder"):
        unet_only.check(read(tiny_lora.peft(tiny_lora.layers(pipeline)), "both"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet.lora_alpha": "a lot"}, "lora_alpha is not a number"),
        ({"unet.lora_alpha": 10**400}, "lora_alpha is not a number"),
        ({"unet.lora_alpha": float("nan")}, "lora_alpha is not a number"),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 2}}, "regular expressions"),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": ["to_q"]}, "alpha_pattern is not a map"),
        ({"unet.lora_alpha": 4, "unet.r": 7}, "not the one that its metadata tells"),
    ],
)
def test_damaged_settings_are_refused(
    pipeline: Any, base: LoraBase, read: Read, settings: dict[str, Any], message: str
) -> None:
    tensors = tiny_lora.peft(tiny_lora.layers(pipeline))
    with pytest.raises(ModelInvalid, match=message):
        base.check(read(tensors, lora_adapter_metadata=json.dumps(settings)))


def test_files_damaged_at_random_are_refused_or_whole(pipeline: Any, base: LoraBase, read: Read) -> None:
    """Nothing but an error with a code, whatever stands in a header."""
    file = read(tiny_lora.kohya(tiny_lora.layers(pipeline)), ss_tag_frequency='{"a": {"b": 3}}')
    content = file.path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    chance, refused = random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(header_end)] = chance.randrange(256)
        file.path.write_bytes(damaged)
        try:
            base.load(lora_files.read(file.path, "some"))
        except ModelInvalid:
            refused += 1
    assert refused > 100


def test_a_file_that_changed_under_way_is_refused(pipeline: Any, base: LoraBase, read: Read) -> None:
    file = read(tiny_lora.kohya(tiny_lora.layers(pipeline)))
    file.path.write_bytes(b"gone")
    with pytest.raises(ModelInvalid, match="has changed just now"):
        base.load(file)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


def test_a_compiled_model_has_the_rows_loras_and_is_not_compiled_for_them() -> None:
    torch.manual_seed(0)
    plain, compiled, compilations = Block(), Block(), []
    compiled.load_state_dict(plain.state_dict())

    def backend(graph: Any, _inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    compiled.compile(backend=backend)
    delta = Delta(torch.randn(2, 8), torch.randn(8, 2), 2, 2)
    adapter, x = Adapter("a", "a", 0, {"unet": {"layer": delta}}), torch.randn(4, 8)
    bases = [(module, LoraBase({"unet": module}, "cpu", torch.float32)) for module in (plain, compiled)]
    with torch.no_grad():
        without = [module(x) for module, _ in bases]
        assert torch.equal(without[0], without[1])
        for scale in (0.5, 1.0, 0.0):
            results = []
            for module, base in bases:
                with base.rows("unet", [((adapter, scale),)] * 4):
                    results.append(module(x))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], without[0]) == (scale == 0.0)
    assert len(compilations) == 1
