"""The checks of a model's files, each of which gives way often: a generator's step takes milliseconds."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from instructors import lora_files, single_files
from instructors.catalogue import components
from instructors.catalogue.content import Content
from instructors.catalogue.header import Header
from instructors.catalogue.report import INFO, Report
from instructors.catalogue.sniff import PICKLE, REMEDY_PICKLE, SAFETENSORS, UNKNOWN, Sniffed, sniff
from instructors.catalogue.target import Target
from instructors.catalogue.values import count_not_finite
from instructors.models import WEIGHTS_SUFFIXES, ModelFolder, files_of
from protocol.errors import AtelierError

RELOAD = "Get the file anew, and compare its size and checksum with those of its source."
USED = ("pipeline", "checkpoint", "lora", "controlnet", "vae", "onnx")


def run(target: Target, models: ModelFolder, report: Report, values: bool) -> Iterator[None]:
    """All checks that load nothing. `values`: look at each number of the weights, too."""
    files = list[Path]()
    yield from _files(target, report, files)
    headers = dict[Path, Header]()
    yield from _format(target, report, files, headers)
    if target.content.format == "onnx" and not target.is_folder:
        yield from _onnx(target, report)
    if values and headers:
        yield from _values(target, report, headers)
    elif headers:
        report.skipped("values", "not asked for")
    if target.is_folder:
        yield from components.check(target.path, files, headers, report)
    _kind(target.content, report)
    if target.content.type == "lora":
        _lora(target, report)
    if target.content.type in ("checkpoint", "diffusion_model") and not target.is_folder:
        _single(target, models, report)
    _memory(target, report, headers)


def _files(target: Target, report: Report, files: list[Path]) -> Iterator[None]:
    """They are there, are plain files, lie where they may, and hold something. Fills `files`."""
    with report.check("files") as facts:
        try:
            files += files_of(target.path, target.boundary) if target.is_folder else [target.path]
            facts["count"], facts["nbytes"] = len(files), sum(file.stat().st_size for file in files)
        except AtelierError as error:
            report.error("files", error.message, "Keep all of a model's files, and no links, in its folder.")
        except OSError:
            report.error("unreadable", "Its files cannot be read, or have changed just now.", "See to their rights.")
        for file in files:
            if _is_weights(file) and file.stat().st_size == 0:
                report.error("empty_file", f"{label(file, target)} has no bytes.", RELOAD)
        if not files:
            report.error("no_files", "There are no files in it.", RELOAD)
        yield


def _format(target: Target, report: Report, files: list[Path], headers: dict[Path, Header]) -> Iterator[None]:
    """What the files are by their content, and whether safetensors are whole. Fills `headers`."""
    with report.check("format") as facts:
        formats: dict[str, int] = {}
        for file in files:
            yield
            try:
                found = sniff(file)
            except OSError:
                report.error("unreadable", f"{label(file, target)} cannot be read.", "See to its rights.")
                continue
            if found.format != UNKNOWN or _is_weights(file):
                formats[found.format] = formats.get(found.format, 0) + 1
            _file_format(found, label(file, target), file, report)
            if found.header is not None:
                headers[file] = found.header
        facts["formats"] = formats
        facts["tensors"] = sum(len(found.tensors) for found in headers.values())
        facts["elements"] = sum(found.elements for found in headers.values())


def _file_format(found: Sniffed, name: str, file: Path, report: Report) -> None:
    if found.damaged is not None:
        report.error(found.damaged.code, f"{name}: {found.damaged}", RELOAD)
    elif found.format == PICKLE:
        report.error("pickle", f"{name} is a pickle, and those run code.", f"Remove it. {REMEDY_PICKLE}")
    elif found.format == UNKNOWN and _is_weights(file) and file.stat().st_size:
        report.error("unknown_format", f"{name} is neither safetensors nor ONNX.", RELOAD)
    elif found.format == SAFETENSORS and file.suffix.lower() != ".safetensors":
        remedy = "Give it the suffix .safetensors."
        report.warning("misnamed", f"{name} is a safetensors file, and is not called so.", remedy)


def _is_weights(file: Path) -> bool:
    return file.suffix.lower() in (*WEIGHTS_SUFFIXES, ".onnx")


def _values(target: Target, report: Report, headers: Mapping[Path, Header]) -> Iterator[None]:
    with report.check("values") as facts:
        wrong: dict[tuple[Path, str], int] = {}
        for file, found in headers.items():
            try:
                for name, count in count_not_finite(file, found):
                    if count:
                        wrong[file, name] = wrong.get((file, name), 0) + count
                    yield
            except OSError:
                report.error("unreadable", f"{label(file, target)} cannot be read to its end.", RELOAD)
        for (file, name), count in wrong.items():
            message = f"{count} numbers of the tensor {name[:100]!r} in {label(file, target)} are NaN or infinite."
            report.error("not_finite", message, RELOAD)
        facts["not_finite"] = sum(wrong.values())


def _onnx(target: Target, report: Report) -> Iterator[None]:
    """Operators, shapes, weights beside the file."""
    from instructors.pipelines.onnx import graph

    with report.check("onnx") as facts:
        yield
        try:
            found = graph.inspect(target.path, target.path.parent)
        except AtelierError as error:
            report.error("onnx", error.message, "Export the model anew, with ONNX's own operators.")
            return
        facts.update(opset=found.opset, opsets=found.opsets, ir_version=found.ir_version, nodes=found.nodes)
        facts.update(inputs=[f"{info.name[:100]}: {info.told}" for info in found.inputs[:64]])
        facts.update(outputs=[f"{info.name[:100]}: {info.told}" for info in found.outputs[:64]])
        facts.update(external_files=len(found.external), elements=found.elements, nbytes=found.nbytes)
        if not found.outputs:
            report.error("no_outputs", "The model has no outputs.", "Export the model anew.")


def _kind(found: Content, report: Report) -> None:
    """What it is, and whether a request can use such a thing."""
    with report.check("type") as facts:
        facts.update(type=found.type, family=found.family, variants=list(found.variants), dtype=found.dtype)
        if found.type == UNKNOWN:
            if report.is_valid:
                message = found.problem or "It is of no kind that is known here."
                report.error("unknown_type", message, found.remedy)
        elif found.type not in USED and found.type != PICKLE:
            report.add(INFO, "not_used", f"No request uses a {found.type.replace('_', ' ')} by itself.")


def _lora(target: Target, report: Report) -> None:
    with report.check("lora") as facts:
        try:
            found = lora_files.read(target.path, target.path.stem)
        except AtelierError as error:
            report.error("lora", error.message, "Plain LoRA and LoCon of kohya, diffusers or peft are applied.")
            return
        except OSError:
            report.error("unreadable", "It cannot be read.", "See to its rights.")
            return
        facts.update(
            layout=found.layout, ranks=list(found.ranks), targets={k: list(v) for k, v in found.targets.items()}
        )


def _single(target: Target, models: ModelFolder, report: Report) -> None:
    """Whether a pipeline can be made of a checkpoint: its configs are known, and all parts are there."""
    with report.check("configs") as facts:
        model_id = Path(target.name.partition("/")[2]).with_suffix("").as_posix().replace("/", ":")
        try:
            found = single_files.read(target.path, models.root or Path(), models.settings(model_id).config)
        except AtelierError as error:
            report.error("configs", error.message, 'Say config = "…" for this model in models.toml, or convert it.')
            return
        elements = found.elements()
        parts = [name for name in found.index if name in single_files.PARTS]
        for name in parts:
            if name not in elements and found.is_shipped:
                report.error("part_missing", f"It holds no tensor of the {name}.", "Get the whole checkpoint.")
        facts.update(configs=found.config.name, shipped=found.is_shipped, elements=elements)


def _memory(target: Target, report: Report, headers: Mapping[Path, Header]) -> None:
    """What the weights take on each kind of device: float32 on a CPU, half of that on a GPU, as models are loaded."""
    with report.check("memory") as facts:
        if headers:
            elements = sum(found.elements for found in _one_of_each(headers).values())
            facts.update(cpu_nbytes=4 * elements, cuda_nbytes=2 * elements)
        else:
            facts.update(cpu_nbytes=target.content.nbytes, cuda_nbytes=target.content.nbytes)


def _one_of_each(headers: Mapping[Path, Header]) -> dict[Path, Header]:
    """Without files that hold the same in another dtype: `model.fp16.safetensors` beside `model.safetensors`."""
    return {file: found for file, found in headers.items() if _plain(file) == file or _plain(file) not in headers}


def _plain(file: Path) -> Path:
    return file.with_name(f"{file.stem.partition('.')[0]}{file.suffix}")


def label(file: Path, target: Target) -> str:
    """A file's name for messages: within its model, never its path."""
    return repr((file.relative_to(target.path) if target.is_folder else Path(file.name)).as_posix()[:200])
