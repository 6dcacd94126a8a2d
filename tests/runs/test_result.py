"""The result of a run is the selected epoch's, where the best epoch is not the last and its weights are an average."""

import pytest
import timm
import torch

import harness
from harness import make_config
from harness.config.settings import Config
from harness.evaluation.trained_model import load_trained_model
from harness.runs.advice import result_warnings
from harness.runs.components import build_components
from harness.runs.summary import best_epoch, summary_table
from harness.tracking.journal import read_journal
from harness.training.loop import TrainerState, evaluate_batches
from harness.utils.errors import UsageError

# The rate rises to the end, where it is too high: the accuracy falls again.
RISING = {
    "recipe": "digits", "model_args": "width=4", "threads": 1, "precision": "fp32", "batch_size": 64,
    "eval_batch_size": 200, "gallery": 0, "cam": "none", "report": False, "wandb": "disabled", "val_fraction": 0.2,
    "epochs": 4, "peak_epoch": 4, "lr_min": 0.04, "lr_max": 0.6, "ema": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """A run whose best epoch is not its last, with a moving average."""
    return harness.run(make_config({**RISING, "output": tmp_path_factory.mktemp("selected")}))


def test_the_result_is_the_epoch_with_the_highest_validation_accuracy_and_has_its_figures(selected):
    accuracies = [row["val/acc"] for row in selected.history]
    best = accuracies.index(max(accuracies)) + 1
    assert 1 < best < len(accuracies) == 4, accuracies
    result, summary = selected.summary["result"], selected.summary
    assert (result["epoch"], result["chosen"]) == (best, "best val/acc")
    assert result["val/acc"] == max(accuracies) != accuracies[-1]
    assert result["val/loss"] == pytest.approx(selected.history[best - 1]["val/loss"], rel=1e-5)
    assert (summary["best"]["epoch"], summary["best"]["val/acc"]) == (best, max(accuracies))
    assert summary["last"]["val/acc"] == accuracies[-1] and summary["epochs"] == 4
    records = [record.values for record in read_journal(selected.folder).records if record.kind == "epoch"]
    assert [row["best/val_acc"] for row in records] == [max(accuracies[: n + 1]) for n in range(4)]


def test_with_a_moving_average_the_result_has_the_figures_of_the_weights_themselves_beside_it(selected):
    result, rows = selected.summary["result"], selected.history
    of_epoch = rows[result["epoch"] - 1]
    assert (result["val/acc_plain"], result["val/loss_plain"]) == (
        of_epoch["val/acc_plain"],
        of_epoch["val/loss_plain"],
    )
    assert of_epoch["val/acc_plain"] not in (of_epoch["val/acc"], rows[-1]["val/acc_plain"])
    assert f"  without EMA  {100 * result['val/acc_plain']:.2f} %" in summary_table(selected.summary)
    components = build_components(make_config(RISING))
    weights = torch.load(selected.folder / "checkpoints/last.pt", weights_only=True)["learner"]["model"]
    components.learner.model.load_state_dict(weights)
    metrics = evaluate_batches(components.learner.model, components.loaders.val, torch.device("cpu"))
    assert metrics["acc"] == rows[-1]["val/acc_plain"] and metrics["loss"] == pytest.approx(rows[-1]["val/loss_plain"])


@pytest.mark.parametrize(
    ("average", "plain", "is_named"),
    [(0.6, 0.83, True), (0.9, 0.905, False), (0.9, 0.92, False), (0.9, 0.95, True), (0.95, 0.6, False)],
)
def test_a_moving_average_that_is_clearly_below_the_weights_themselves_is_named_with_the_remedy(
    average, plain, is_named
):
    """Of 288 validation images: 0.9 and 0.92 are within the interval."""
    components = build_components(make_config(RISING))
    metrics = {"val/acc": average, "val/acc_plain": plain, "test/acc": average}
    lines = [line for line in result_warnings(components, TrainerState(step=400), metrics) if "--ema" in line]
    assert len(lines) == is_named
    for line in lines:
        assert f"{100 * plain:.1f} %" in line and "--ema 0.5 is too long" in line


def test_the_saved_weights_are_those_of_the_selected_epoch_and_of_the_returned_model(selected):
    trained = load_trained_model(selected.folder, {"device": "cpu"})
    for name, value in selected.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name]), name
    components = build_components(make_config(RISING))
    metrics = evaluate_batches(trained.model, components.loaders.val, torch.device("cpu"))
    assert metrics["acc"] == max(row["val/acc"] for row in selected.history)


def test_a_last_checkpoint_is_loaded_with_its_moving_average_and_not_with_the_weights_themselves(selected):
    path = selected.folder / "checkpoints/last.pt"
    learner = torch.load(path, weights_only=True)["learner"]
    loaded = load_trained_model(path, {"device": "cpu"}).model.state_dict()
    differing = 0
    for name, value in loaded.items():
        assert torch.equal(value, learner["ema"][f"module.{name}"]), name
        differing += not torch.equal(value, learner["model"][name])
    assert differing > 10


@pytest.mark.slow
def test_without_a_selection_the_result_is_the_last_epoch_however_good_an_earlier_one_was(tmp_path, selected):
    result = harness.run(make_config({**RISING, "output": tmp_path, "select": "last"}))
    assert result.history[-1]["val/acc"] == selected.history[-1]["val/acc"]
    assert (result.summary["result"]["epoch"], result.summary["result"]["chosen"]) == (4, "last epoch")
    assert result.summary["result"]["val/acc"] == result.history[-1]["val/acc"]
    assert result.summary["best"]["epoch"] == selected.summary["result"]["epoch"]


def test_the_best_epoch_by_a_metric_is_that_of_its_highest_value_or_of_the_lowest_loss():
    columns = {
        "loss": (1.0, 0.4, 0.7),
        "acc": (0.5, 0.6, 0.8),
        "balanced_acc": (0.9, 0.6, 0.8),
        "f1_macro": (0.1, 0.3, 0.3),
    }
    history = [
        {"epoch": row + 1, **{f"val/{name}": column[row] for name, column in columns.items()}} for row in range(3)
    ]
    best = {name: best_epoch(history, "val", name) for name in columns}
    assert best == {"loss": (2, 0.4), "acc": (3, 0.8), "balanced_acc": (1, 0.9), "f1_macro": (2, 0.3)}


def test_a_run_selects_and_stops_early_by_the_metric_of_select_by(tmp_path):
    """Its validation loss rises from an epoch on in which the accuracy still does."""
    settings = {
        **RISING,
        "output": tmp_path,
        "select_by": "loss",
        "early_stop": 2,
        "lr_max": 0.4,
        "epochs": 6,
        "ema": 0,
    }
    result = harness.run(make_config(settings))
    values = [row["val/loss"] for row in result.history]
    best = values.index(min(values)) + 1
    assert len(values) == min(best + 2, 6)
    summary = result.summary
    assert (summary["result"]["epoch"], summary["result"]["chosen"]) == (best, "best val/loss")
    assert summary["result"]["val/loss"] == pytest.approx(min(values), rel=1e-5)
    assert (summary["best"]["epoch"], summary["best"]["val/loss"]) == (best, min(values))
    assert summary["best"]["val/acc"] == result.history[best - 1]["val/acc"]
    records = [record.values for record in read_journal(result.folder).records if record.kind == "epoch"]
    assert [row["best/val_loss"] for row in records] == [min(values[: n + 1]) for n in range(len(values))]
    accuracies = [row["val/acc"] for row in result.history]
    assert [row["best/val_acc"] for row in records] == [max(accuracies[: n + 1]) for n in range(len(values))]


def test_a_metric_of_selection_without_a_selection_is_refused():
    with pytest.raises(UsageError, match="compares no epochs"):
        Config(select_by="f1_macro", select="last")


def test_the_best_epoch_is_the_first_of_the_highest_and_none_whose_loss_is_not_finite():
    nan = float("nan")
    rows = [(1, 0.5, 1.0), (2, 0.9, nan), (3, 0.8, 0.5), (4, 0.8, 0.4), (5, nan, 0.1)]
    history = [{"epoch": epoch, "val/acc": acc, "val/loss": loss} for epoch, acc, loss in rows]
    assert best_epoch(history, "val") == (3, 0.8)
    assert best_epoch(history[1:2], "val")[0] == 0


def test_the_initial_weights_are_those_of_the_seed_and_of_a_plain_model_made_under_it():
    def initial(seed):
        config = Config(data="digits", model_args={"width": 4}, seed=seed, precision="fp32")
        torch.manual_seed(99)  # whatever ran before
        return build_components(config).learner.model.state_dict()

    for seed in (0, 7):
        torch.manual_seed(seed)
        plain = timm.create_model("custom_resnet", num_classes=10, width=4).state_dict()
        ours = initial(seed)
        assert all(torch.equal(ours[name], value) for name, value in plain.items())
    assert not torch.equal(initial(0)["prep.conv.weight"], initial(7)["prep.conv.weight"])
