"""Export a trained model: as a folder for stock timm with a model card, or as ONNX for other runtimes."""

from __future__ import annotations

import io
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.evaluation.trained_model import TrainedModel, load_trained_model, run_folder
from harness.models import factory
from harness.models.model_card import model_card
from harness.runs.inference import used_models
from harness.runs.tracked_run import is_tracking_requested, tracked_output
from harness.tracking.lineage import collection_name, model_name
from harness.tracking.records import Artifact
from harness.tracking.run_files import EXPORT, check_output_folder
from harness.utils.errors import HarnessError, UsageError
from harness.utils.files import write_atomically
from harness.utils.plain import json_text

TOLERANCE = 1e-3  # greatest difference of a logit between torch and ONNX Runtime, relative to the largest logit


def track_export(path: Path, files: Mapping[str, Path], form: str, settings: Mapping[str, Any]) -> None:
    """Record an export as a W&B run that uses the model and makes the exported files, where the settings name `wandb`.

    Args:
        path: the run directory or checkpoint that was exported.
        files: name in the artifact -> exported file.
        form: `timm` or `onnx`; part of the artifact's name.

    Raises:
        UsageError: W&B would refuse a value, such as the project.
        DataError: the run directory has links in place of files.
    """
    if not is_tracking_requested(settings):
        return
    trained = load_trained_model(path, {**settings, "device": "cpu"})
    folder = run_folder(trained.path)
    out = folder / EXPORT
    check_output_folder(out, is_named=False)
    name = f"export-{folder.name}"
    models = used_models(trained)
    with tracked_output(trained.config, out, job_type="export", name=name, inputs=lambda: models) as tracker:
        about = models[0].metadata if models else {}
        tracker.artifact(
            Artifact(
                collection_name(model_name(trained.config), form), "model", files, metadata={**about, "form": form}
            )
        )


def timm_files(folder: Path) -> dict[str, Path]:
    """Return the files that `export_timm` writes to a folder, by name."""
    names = ("model.safetensors", "config.json", "README.md", factory.CLASS_MAP)
    return {name: folder / name for name in names if (folder / name).is_file()}


def export_timm(path: Path, folder: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, with a model card.

    Beside it lies the class map for timm's scripts, which number class folders in another order (1, 2, ... 10 instead of
    1, 10, 2). timm builds the model by its name; `import harness.models.cifar_resnet` registers the models of this package first.

    Raises:
        UsageError: timm cannot rebuild the model.
    """
    from timm.models import save_for_hf

    trained = load_trained_model(path, {**(settings or {}), "device": "cpu"})
    if not hasattr(trained.model, "pretrained_cfg"):
        raise UsageError(
            f"{trained.config.model} has no timm configuration, so timm cannot rebuild it; use --onnx instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as written:  # timm would write through links
        save_for_hf(
            trained.model.to(memory_format=torch.contiguous_format),  # the only layout that safetensors writes
            written,
            model_config={
                "label_names": list(trained.classes),
                "num_classes": len(trained.classes),
                **factory.multilabel_facts(None if trained.thresholds is None else trained.thresholds.tolist()),
            },
            safe_serialization=True,
            data_config=factory.timm_input(trained.preprocess),
        )
        for file in Path(written).iterdir():  # safetensors writes files that only their owner may read
            with open(file, "rb") as source:
                write_atomically(folder / file.name, partial(shutil.copyfileobj, source))
    write_atomically(folder / "README.md", model_card(trained.facts))
    factory.write_class_map(trained.classes, folder / factory.CLASS_MAP)
    modules = [*filter(None, [factory.module_of(trained.facts)]), *trained.config.plugin]
    address = f"local-dir:{folder.resolve()}"
    # In Python's double quotes, so that the shell's single ones hold the snippet as it is.
    text = json_text(address) if address.isprintable() else repr(address)
    code = f"import {', '.join(['timm', *modules])}; model = timm.create_model({text}, pretrained=True)"
    return f"{folder}: load it with\npython -c {shlex.quote(code)}"


def _with_metadata(content: bytes, trained: TrainedModel) -> bytes:
    """Return an ONNX file with the classes and their thresholds in its metadata, where images have several labels."""
    if trained.thresholds is None:
        return content
    import onnx

    model = onnx.load_from_string(content)
    facts = {**factory.multilabel_facts(trained.thresholds.tolist()), "label_names": list(trained.classes)}
    onnx.helper.set_model_props(
        model, {name: value if isinstance(value, str) else json_text(value) for name, value in facts.items()}
    )
    return bytes(model.SerializeToString())


def export_onnx(path: Path, file: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Write an ONNX file with a dynamic batch size, and compare its logits with torch's.

    Raises:
        UsageError: the extra is not installed.
        HarnessError: the logits differ.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX needs an extra: pip install 'vision-harness[onnx]'") from None
    trained = load_trained_model(path, {**(settings or {}), "device": "cpu", "precision": "fp32"})
    size = trained.preprocess.size
    images = torch.randn(2, trained.preprocess.channels, size, size, generator=torch.Generator().manual_seed(0))
    model = trained.model.to(memory_format=torch.contiguous_format)
    exported = io.BytesIO()
    with torch.no_grad():
        expected = model(images)
        torch.onnx.export(
            model, (images,), exported,  # type: ignore[arg-type]
            input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False, opset_version=17,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(exported.getvalue(), providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= TOLERANCE:
        raise HarnessError(
            f"{file}: ONNX Runtime's logits differ from torch's by {difference:.2g} of the largest; nothing was written"
        )
    write_atomically(file, _with_metadata(exported.getvalue(), trained))
    return f"{file}: logits equal torch's to {difference:.1e} of the largest"
